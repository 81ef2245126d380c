"""LED's configuration: BART's, with windows per layer and global tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from pid_jax.errors import UserError
from pid_jax.models.bart.configuration import BartLikeConfig


@dataclasses.dataclass(frozen=True)
class LEDConfig(BartLikeConfig):
    """An LED `config.json`, which may say how many tokens are global."""

    model_type: str = "led"
    max_document_tokens: int = 16384
    attention_window: tuple[int, ...] = ()
    """Per encoder layer, how many neighbours a token sees, half of them on either side."""
    global_attention_tokens: int = 1
    """The number of tokens at a document's start that see all others and that all others see.

    A key of this package alone: transformers takes a `global_attention_mask` with each call, and
    without one no token is global. The first token is what LED was fine-tuned with.
    """

    architecture: ClassVar[str] = "LEDForConditionalGeneration"
    norm_first: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = False
    position_offset: ClassVar[int] = 0
    KEYS: ClassVar[Mapping[str, str]] = {
        "dropout_rate": "dropout",
        "max_document_tokens": "max_encoder_position_embeddings",
        "max_decoder_tokens": "max_decoder_position_embeddings",
    }
    ALIASES: ClassVar[Mapping[str, str]] = {
        **BartLikeConfig.ALIASES,
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "init_std",
    }

    @property
    def embedding_scale(self) -> float:
        """LED never scales embeddings, even where its `config.json` has BART's key for it."""
        return 1.0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LEDConfig":
        """Reads a `config.json`. Raises `UserError` for what is not supported, by its key."""
        rest = {key: value for key, value in config.items() if key != "attention_window"}
        read = super().from_hf(rest)
        assert isinstance(read, cls)
        windows = config.get("attention_window")
        if windows is None:
            windows = 512
        if isinstance(windows, int):
            windows = [windows] * read.encoder_layers
        if (
            not isinstance(windows, list | tuple)
            or len(windows) != read.encoder_layers
            or not all(type(width) is int and width > 0 and width % 2 == 0 for width in windows)
        ):
            raise UserError(
                'config.json: "attention_window" must be an even number above 0, or a list of one '
                f'for each of "encoder_layers": {read.encoder_layers}, but is {windows!r}'
            )
        if read.global_attention_tokens < 0:
            raise UserError(
                'config.json: "global_attention_tokens" must be at least 0, but is '
                f"{read.global_attention_tokens}"
            )
        return dataclasses.replace(read, attention_window=tuple(windows))

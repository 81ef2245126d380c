"""Configurations of BART and mBART, and what those of PEGASUS and LED have of them.

A family's configuration says in which points its models differ, as class variables: where norms
stand, which positions there are, what an absent key of its `config.json` means.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pid_jax.errors import UserError
from pid_jax.models import config_reading
from pid_jax.models.layers import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class BartLikeConfig:
    """The values of a `config.json` that shape the computation. A family sets its defaults.

    Fields have the names of their keys but for those in `KEYS`.
    """

    model_type: str
    vocab_size: int = 50265
    max_document_tokens: int = 1024
    max_decoder_tokens: int = 1024
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    encoder_layerdrop: float = 0.0
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    decoder_layerdrop: float = 0.0
    activation_function: str = "gelu"
    dropout_rate: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    other_eos_token_ids: tuple[int, ...] = ()
    decoder_start_token_id: int = 2
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    architecture: ClassVar[str]
    """The class of transformers that builds it."""
    norm_first: ClassVar[bool]
    """Whether a layer normalises before each of its parts, or else after it."""
    embedding_norm: ClassVar[bool]
    """Whether embeddings are normalised before the first layer."""
    final_norm: ClassVar[bool]
    """Whether outputs are normalised after the last layer."""
    position_offset: ClassVar[int] = 2
    """Rows of a table of learned positions before that of position 0."""
    sinusoidal: ClassVar[bool] = False
    """Whether positions are sines and cosines, or else learned."""
    KEYS: ClassVar[Mapping[str, str]] = {
        "dropout_rate": "dropout",
        "max_document_tokens": "max_position_embeddings",
        "max_decoder_tokens": "max_position_embeddings",
    }

    ALIASES: ClassVar[Mapping[str, str]] = {
        "num_attention_heads": "encoder_attention_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
    }

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by before positions are added."""
        return self.d_model**0.5 if self.scale_embedding else 1.0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "BartLikeConfig":
        """Reads a `config.json`. Raises `UserError` for what is not supported, by its key."""
        config = config_reading.without_aliases(config, cls.ALIASES)
        defaults: dict[str, Any] = {"model_type": config["model_type"]}
        if "forced_bos_token_id" not in config and config.get("force_bos_token_to_be_generated"):
            defaults["forced_bos_token_id"] = config.get("bos_token_id", cls.bos_token_id)
        read = config_reading.read_fields(cls, config, defaults, cls.KEYS)
        activation = read.activation_function
        config_reading.check_supported("activation_function", activation, list(ACTIVATIONS))
        encoder_decoder = config.get("is_encoder_decoder", True)
        config_reading.check_supported("is_encoder_decoder", encoder_decoder, [True])
        sizes = ("vocab_size", "d_model", "encoder_layers", "decoder_layers")
        config_reading.check_positive(read, *sizes, "encoder_ffn_dim", "decoder_ffn_dim")
        for key in ("encoder_attention_heads", "decoder_attention_heads"):
            config_reading.check_positive(read, key)
            if read.d_model % getattr(read, key):
                raise UserError(
                    f'config.json: "d_model" must be a multiple of "{key}", but is {read.d_model}, '
                    f"and that {getattr(read, key)}"
                )
        return read

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        return config_reading.write_fields(self, self.KEYS) | {
            "architectures": [self.architecture],
            "is_encoder_decoder": True,
        }

    def with_tensors(self, names: Collection[str]) -> "BartLikeConfig":
        """The configuration that fits a checkpoint with these tensors.

        A checkpoint with `lm_head.weight` is untied, whatever its `config.json` says.
        """
        return dataclasses.replace(self, tie_word_embeddings="lm_head.weight" not in names)


@dataclasses.dataclass(frozen=True)
class BartConfig(BartLikeConfig):
    """A BART `config.json`: norms after each part."""

    model_type: str = "bart"

    architecture: ClassVar[str] = "BartForConditionalGeneration"
    norm_first: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class MBartConfig(BartLikeConfig):
    """An mBART `config.json`.

    A decoder starts with the code of the language that it is to write (mBART), or is forced to
    write it first (mBART-50): "decoder_start_token_id" and "forced_bos_token_id" say which.
    """

    model_type: str = "mbart"

    architecture: ClassVar[str] = "MBartForConditionalGeneration"
    norm_first: ClassVar[bool] = True
    embedding_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = True

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> BartLikeConfig:
        """Where no language is set, decoders start with `bos_token_id`, as in transformers."""
        if config.get("decoder_start_token_id") is None:
            start = config.get("bos_token_id", cls.bos_token_id)
            config = {**config, "decoder_start_token_id": start}
        return super().from_hf(config)

"""Configurations of T5, T5 1.1, Flan-T5, ByT5, mT5 and UMT5, and what LongT5's has of them."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeVar

from pid_jax.errors import UserError
from pid_jax.models import config_reading
from pid_jax.models.layers import ACTIVATIONS

ConfigT = TypeVar("ConfigT", bound="T5LikeConfig")


@dataclasses.dataclass(frozen=True)
class T5LikeConfig:
    """The values of a `config.json` that both families have, by their names there."""

    model_type: str
    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    """The activation, after `gated-` where the feed-forward is gated. `gated-gelu` means
    `gelu_new`. The two fields below override it."""
    dense_act_fn: str = "relu"
    is_gated_act: bool = False
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    other_eos_token_ids: tuple[int, ...] = ()
    decoder_start_token_id: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    max_document_tokens: ClassVar[None] = None
    max_decoder_tokens: ClassVar[None] = None
    architecture: ClassVar[Mapping[str, str]]
    """The name of transformers' class, by model type."""
    ALIASES: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    @property
    def bias_in_every_layer(self) -> bool:
        """Whether each layer has relative position biases of its own, not only the first."""
        return False

    @classmethod
    def read(
        cls: type[ConfigT], config: Mapping[str, Any], defaults: dict[str, Any], *, scales: bool
    ) -> ConfigT:
        """Reads a `config.json`, whose own `tie_word_embeddings` decides until weights are seen.

        defaults: what an absent key means where that is not the field's own default. scales:
        whether the model type ever scales the decoder's output before the head. If so,
        `scale_decoder_outputs` says whether it does, or, where that is absent, the output is
        scaled unless `tie_word_embeddings` is false. Raises `UserError` for a missing or
        unsupported value, by its key.
        """
        defaults = {"model_type": config["model_type"], **defaults}
        if "num_decoder_layers" not in config or config["num_decoder_layers"] is None:
            layers = config.get("num_layers", defaults.get("num_layers", cls.num_layers))
            defaults["num_decoder_layers"] = layers
        tied = config.get("tie_word_embeddings") is not False
        defaults["scale_decoder_outputs"] = tied
        feed_forward = config.get("feed_forward_proj")
        if feed_forward is None:
            feed_forward = defaults.get("feed_forward_proj", cls.feed_forward_proj)
        if isinstance(feed_forward, str):
            defaults["is_gated_act"] = feed_forward.startswith("gated-")
            named = feed_forward.removeprefix("gated-")
            defaults["dense_act_fn"] = "gelu_new" if feed_forward == "gated-gelu" else named
        config = config_reading.without_aliases(config, cls.ALIASES)
        if not scales:
            config["scale_decoder_outputs"] = False
        for key in ("is_gated_act", "scale_decoder_outputs"):
            if key in config and config[key] is None:  # transformers takes null as false
                config[key] = False

        read = config_reading.read_fields(cls, config, defaults)
        buckets, distance = (
            read.relative_attention_num_buckets,
            read.relative_attention_max_distance,
        )
        if buckets < 4 or buckets % 2 or distance <= buckets // 2:
            raise UserError(
                'config.json: "relative_attention_num_buckets" must be even and at least 4, and '
                '"relative_attention_max_distance" above half of it, not '
                f"{buckets} and {distance}"
            )
        if read.dense_act_fn == defaults["dense_act_fn"]:
            supported = [*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)]
            config_reading.check_supported("feed_forward_proj", read.feed_forward_proj, supported)
        config_reading.check_supported("dense_act_fn", read.dense_act_fn, ACTIVATIONS)
        encoder_decoder = config.get("is_encoder_decoder", True)
        config_reading.check_supported("is_encoder_decoder", encoder_decoder, [True])
        config_reading.check_positive(
            read,
            "vocab_size",
            "d_model",
            "d_kv",
            "d_ff",
            "num_layers",
            "num_decoder_layers",
            "num_heads",
        )
        return read

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        return config_reading.write_fields(self) | {
            "architectures": [self.architecture[self.model_type]],
            "is_encoder_decoder": True,
        }

    def with_tensors(self: ConfigT, names: Collection[str]) -> ConfigT:
        """The configuration that fits a checkpoint with these tensors.

        A checkpoint with `lm_head.weight` is untied, whatever its `config.json` says.
        """
        return dataclasses.replace(self, tie_word_embeddings="lm_head.weight" not in names)


@dataclasses.dataclass(frozen=True)
class T5Config(T5LikeConfig):
    """The values of a T5 `config.json` that shape the computation, by their names there."""

    model_type: str = "t5"

    architecture: ClassVar[Mapping[str, str]] = {
        "t5": "T5ForConditionalGeneration",
        "mt5": "MT5ForConditionalGeneration",
        "umt5": "UMT5ForConditionalGeneration",
    }

    @property
    def bias_in_every_layer(self) -> bool:
        return self.model_type == "umt5"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "T5Config":
        """Reads a `config.json`. Raises `UserError` for an unsupported value, by its key."""
        model_type = config["model_type"]
        defaults: dict[str, Any] = {}
        if model_type != "t5":
            defaults |= {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
            defaults["feed_forward_proj"] = "gated-gelu"
        return cls.read(config, defaults, scales=model_type != "mt5")

"""T5 and its relatives: T5, T5 1.1, Flan-T5, ByT5, mT5 and UMT5.

Raffel et al., arXiv 1910.10683 (T5); Shazeer, arXiv 2002.05202 (the gated feed-forward of
1.1); Xue et al., arXiv 2010.11934 (mT5) and 2105.13626 (ByT5); Chung et al., arXiv
2304.09151 (UMT5, whose every layer has a relative position bias of its own).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pid_jax.models import t5_layers
from pid_jax.models.protocol import About, Family
from pid_jax.models.t5_layers import (
    EncoderLayer,
    T5Like,
    T5LikeConfig,
    norm,
    relative_position_bias,
)


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
        """Reads a `config.json`; raises `UserError` for an unsupported value, by its key."""
        model_type = config["model_type"]
        defaults: dict[str, Any] = {}
        if model_type != "t5":
            defaults |= {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
            defaults["feed_forward_proj"] = "gated-gelu"
        return cls.read(config, defaults, scales=model_type != "mt5")


class Encoder(nn.Module):
    config: T5Config
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        self.layers = [EncoderLayer(config, self.dtype) for _ in range(config.num_layers)]
        biases = config.num_layers if config.bias_in_every_layer else 1
        self.relative_position_bias = [
            relative_position_bias(config, bidirectional=True) for _ in range(biases)
        ]
        self.final_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self, x: Float[Array, "B S D"], document_mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        length = x.shape[1]
        slots = jnp.arange(length)[None]
        biases = [
            bias.by_distance(length) if deterministic else bias(slots, slots)
            for bias in self.relative_position_bias
        ]
        x = self.dropout(x, deterministic)
        for i, layer in enumerate(self.layers):
            x = layer(x, document_mask, biases[i % len(biases)], deterministic)
        return self.dropout(self.final_norm(x), deterministic)


class T5(T5Like):
    """The family's module."""

    config: T5Config
    encoder_type: ClassVar[type[nn.Module]] = Encoder


FAMILY = Family(
    about=About(
        "T5",
        "T5, T5 1.1, Flan-T5, ByT5, mT5, UMT5",
        "mt5-xxl",
        {
            "model_type": "mt5",
            "vocab_size": 250112,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "tie_word_embeddings": False,
        },
    ),
    model_types=("t5", "mt5", "umt5"),
    config_from_hf=T5Config.from_hf,
    module=T5,
    tensors=t5_layers.tensors,
    aliases=t5_layers.ALIASES,
    ignored=t5_layers.IGNORED,
)

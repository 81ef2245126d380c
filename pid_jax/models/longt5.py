"""LongT5: T5 whose encoder attends locally, and to summaries of blocks of the whole document.

Guo et al., arXiv 2112.07916. The decoder is T5's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pid_jax.models import config_reading, t5_layers
from pid_jax.models.attention import merge_heads, split_heads
from pid_jax.models.local_attention import Dropout, Everywhere, attend_nearby
from pid_jax.models.protocol import About, Family, TensorPlace
from pid_jax.models.t5_layers import (
    Attention,
    EncoderLayer,
    T5Like,
    T5LikeConfig,
    norm,
    relative_position_bias,
)

_ATTENTION_NAMES = {
    "local": "LocalSelfAttention",
    "transient-global": "TransientGlobalSelfAttention",
}
"""What transformers calls the encoder's attention, by `encoder_attention_type`."""


@dataclasses.dataclass(frozen=True)
class LongT5Config(T5LikeConfig):
    """The values of a LongT5 `config.json` that shape the computation, by their names there."""

    model_type: str = "longt5"
    encoder_attention_type: str = "local"
    local_radius: int = 127
    global_block_size: int = 16

    architecture: ClassVar[Mapping[str, str]] = {"longt5": "LongT5ForConditionalGeneration"}

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LongT5Config":
        """Reads a `config.json`; raises `UserError` for an unsupported value, by its key."""
        read = cls.read(config, {}, scales=True)
        config_reading.check_supported(
            "encoder_attention_type", read.encoder_attention_type, _ATTENTION_NAMES
        )
        config_reading.check_positive(read, "local_radius", "global_block_size")
        return read


class Biases(NamedTuple):
    """Relative position biases, by distance; all layers share them."""

    near: Float[Array, "H near"]
    """Of tokens, -radius ... radius."""
    far: Float[Array, "H far"] | None
    """Of G blocks, 1 - G ... G - 1."""


class LocalAttention(Attention):
    """Attention to the tokens at most `local_radius` away."""

    config: LongT5Config

    def everywhere(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], bias: Float[Array, "H far"] | None
    ) -> Everywhere | None:
        """What else is seen."""
        del x, mask, bias
        return None

    def of_documents(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], bias: Biases, deterministic: bool
    ) -> Float[Array, "B S D"]:
        config = self.config
        dropout = None
        if not deterministic and config.dropout_rate > 0:
            dropout = Dropout(self.make_rng("dropout"), config.dropout_rate, same_for_queries=True)
        attended = attend_nearby(
            split_heads(self.query(x), config.num_heads),
            self.project(x),
            mask,
            config.local_radius,
            bias.near,
            self.everywhere(x, mask, bias.far),
            dropout,
        )
        return self.output(merge_heads(attended))


class TransientGlobalAttention(LocalAttention):
    """Local attention, and attention to the sums of blocks, of `global_block_size` tokens each."""

    def setup(self) -> None:
        super().setup()
        self.global_input_norm = norm(self.config, self.dtype)

    def everywhere(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], bias: Float[Array, "H far"] | None
    ) -> Everywhere:
        """The blocks' keys and values, by the projections that tokens have.

        A document's last tokens, too few for a block, belong to the block before. Where there
        are too few for any, nothing is seen.
        """
        size = self.config.global_block_size
        batch, length, width = x.shape
        blocks = blocks_of(length, size)
        room = (blocks + 1) * size
        x = jnp.where(mask[..., None], x, 0)
        x = jnp.pad(x, ((0, 0), (0, max(room - length, 0)), (0, 0)))[:, :room]
        sums = x.reshape(batch, blocks + 1, size, width).sum(axis=2)
        whole = mask.sum(axis=1, keepdims=True) // size
        index = jnp.arange(blocks)
        last = (index == whole - 1)[..., None]
        summed = sums[:, :-1] + jnp.where(last, sums[:, 1:], 0)
        return Everywhere(
            self.project(self.global_input_norm(summed)),
            mask=index < whole,
            distance_bias=bias,
            places=jnp.clip(jnp.arange(-(-length // size)), 0, jnp.maximum(whole - 1, 0)),
            queries_per_place=size,
        )


def blocks_of(length: int, size: int) -> int:
    """How many whole blocks there are in so many tokens, or 1, which then is masked."""
    return max(length // size, 1)


class Encoder(nn.Module):
    config: LongT5Config
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        self.sums_blocks = config.encoder_attention_type == "transient-global"
        attention = TransientGlobalAttention if self.sums_blocks else LocalAttention
        self.layers = [
            EncoderLayer(config, self.dtype, attention) for _ in range(config.num_layers)
        ]
        self.relative_position_bias = relative_position_bias(config, bidirectional=True)
        if self.sums_blocks:
            # A start that looks nearby would hide most blocks from most heads.
            self.global_relative_position_bias = relative_position_bias(
                config, bidirectional=True, starts_nearby=False
            )
        self.final_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self, x: Float[Array, "B S D"], document_mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        config = self.config
        far = None
        if self.sums_blocks:
            blocks = blocks_of(x.shape[1], config.global_block_size)
            far = self.global_relative_position_bias.by_distance(blocks)
        biases = Biases(self.relative_position_bias.by_distance(config.local_radius + 1), far)
        x = self.dropout(x, deterministic)
        for layer in self.layers:
            x = layer(x, document_mask, biases, deterministic)
        return self.dropout(self.final_norm(x), deterministic)


class LongT5(T5Like):
    """The family's module."""

    config: LongT5Config
    encoder_type: ClassVar[type[nn.Module]] = Encoder


def _tensors(config: LongT5Config) -> dict[str, TensorPlace]:
    name = _ATTENTION_NAMES[config.encoder_attention_type]
    places = t5_layers.tensors(config, encoder_attention=name)
    bias = f"encoder.block.0.layer.0.{name}.relative_attention_bias.weight"
    places[bias] = TensorPlace(("encoder", "relative_position_bias", "embedding"))
    if config.encoder_attention_type == "transient-global":
        bias = bias.replace("relative_attention", "global_relative_attention")
        places[bias] = TensorPlace(("encoder", "global_relative_position_bias", "embedding"))
        for i in range(config.num_layers):
            block_norm = f"encoder.block.{i}.layer.0.{name}.global_input_layer_norm.weight"
            path = ("encoder", f"layers_{i}", "self_attention", "global_input_norm", "scale")
            places[block_norm] = TensorPlace(path)
    return places


FAMILY = Family(
    about=About(
        "LongT5",
        "local and transient-global attention",
        "long-t5-tglobal-xl",
        {
            "model_type": "longt5",
            "encoder_attention_type": "transient-global",
            "vocab_size": 32128,
            "d_model": 2048,
            "d_kv": 64,
            "d_ff": 5120,
            "num_layers": 24,
            "num_decoder_layers": 24,
            "num_heads": 32,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    model_types=("longt5",),
    config_from_hf=LongT5Config.from_hf,
    module=LongT5,
    tensors=_tensors,
    aliases=t5_layers.ALIASES,
    ignored=t5_layers.IGNORED,
)

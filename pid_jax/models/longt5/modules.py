"""LongT5's modules: local and transient-global attention, the encoder and the whole model.

Guo et al., arXiv 2112.07916. All else is T5's.
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pid_jax.models.attention import (
    AttentionDropout,
    GlobalKeys,
    local_attention,
    merge_heads,
    split_heads,
)
from pid_jax.models.layer_stack import apply_layers
from pid_jax.models.longt5.configuration import LongT5Config
from pid_jax.models.rematerialisation import NONE, rematerialised
from pid_jax.models.t5.modules import (
    T5Attention,
    T5EncoderLayer,
    T5Like,
    norm,
    relative_position_bias,
)


class LongT5Biases(NamedTuple):
    """Relative position biases, by distance. All layers share them."""

    local_bias: Float[Array, "H local_distances"]
    """For tokens at distances -radius ... radius."""
    global_bias: Float[Array, "H global_distances"] | None
    """For blocks of the document, at distances from 1 - blocks to blocks - 1."""


class LongT5LocalAttention(T5Attention):
    """Attention to the tokens at most `local_radius` away."""

    config: LongT5Config

    def global_keys(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        bias: Float[Array, "H global_distances"] | None,
    ) -> GlobalKeys | None:
        """The keys and values that every query sees: none."""
        del x, mask, bias
        return None

    def of_documents(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        bias: LongT5Biases,
        deterministic: bool,
    ) -> Float[Array, "B S D"]:
        config = self.config
        dropout = None
        if not deterministic and config.dropout_rate > 0:
            dropout = AttentionDropout(
                self.make_rng("dropout"), config.dropout_rate, same_for_queries=True
            )
        attended = local_attention(
            split_heads(self.query(x), config.num_heads),
            self.project(x),
            mask,
            config.local_radius,
            bias.local_bias,
            self.global_keys(x, mask, bias.global_bias),
            dropout,
        )
        return self.output(merge_heads(attended))


class LongT5GlobalAttention(LongT5LocalAttention):
    """Local attention, and attention to the sums of blocks of `global_block_size` tokens.

    LongT5's transient-global attention.
    """

    def setup(self) -> None:
        super().setup()
        self.global_input_norm = norm(self.config, self.dtype)

    def global_keys(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        bias: Float[Array, "H global_distances"] | None,
    ) -> GlobalKeys:
        """The blocks' keys and values, by the projections that tokens have.

        A document's last tokens, too few for a block, belong to the block before. In a document
        too short for a block no query sees any.
        """
        size = self.config.global_block_size
        batch, length, width = x.shape
        blocks = blocks_of(length, size)
        padded = (blocks + 1) * size
        x = jnp.where(mask[..., None], x, 0)
        x = jnp.pad(x, ((0, 0), (0, max(padded - length, 0)), (0, 0)))[:, :padded]
        sums = x.reshape(batch, blocks + 1, size, width).sum(axis=2)
        whole = mask.sum(axis=1, keepdims=True) // size
        index = jnp.arange(blocks)
        last = (index == whole - 1)[..., None]
        summed = sums[:, :-1] + jnp.where(last, sums[:, 1:], 0)
        return GlobalKeys(
            self.project(self.global_input_norm(summed)),
            mask=index < whole,
            distance_bias=bias,
            centres=jnp.clip(jnp.arange(-(-length // size)), 0, jnp.maximum(whole - 1, 0)),
            queries_per_centre=size,
        )


def blocks_of(length: int, size: int) -> int:
    """The number of whole blocks in a document, or 1, which then is masked."""
    return max(length // size, 1)


class LongT5Encoder(nn.Module):
    """T5's encoder with local attention, and with attention to blocks if transient-global."""

    config: LongT5Config
    dtype: DTypeLike
    remat: str = NONE
    """The policy of rematerialisation, see `pid_jax.models.rematerialisation`."""
    scan_layers: bool = False
    """Whether programs scan over layers, see `pid_jax.models.layer_stack`."""

    def setup(self) -> None:
        config = self.config
        self.sums_blocks = config.encoder_attention_type == "transient-global"
        attention = LongT5GlobalAttention if self.sums_blocks else LongT5LocalAttention
        layer = rematerialised(T5EncoderLayer, self.remat)
        self.layers = [layer(config, self.dtype, attention) for _ in range(config.num_layers)]
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
        global_bias = None
        if self.sums_blocks:
            blocks = blocks_of(x.shape[1], config.global_block_size)
            global_bias = self.global_relative_position_bias.by_distance(blocks)
        local_bias = self.relative_position_bias.by_distance(config.local_radius + 1)
        biases = LongT5Biases(local_bias, global_bias)
        x = self.dropout(x, deterministic)
        arguments = [(document_mask, biases)] * len(self.layers)
        x, _ = apply_layers(self, x, arguments, deterministic, scan=self.scan_layers)
        return self.dropout(self.final_norm(x), deterministic)


class LongT5(T5Like):
    """The model of LongT5."""

    config: LongT5Config
    encoder_type: ClassVar[type[nn.Module]] = LongT5Encoder

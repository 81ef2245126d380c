"""Self-attention of encoders, in blocks of queries.

Sizes beside the letters of `pid_jax.models.protocol`: `distances` = 2 S - 1. A bias has one column
for each distance 1 - S ... S - 1, which is the key's position minus the query's.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends.layouts import KeyValue
from pid_jax.backends.scores import adjust_scores, is_within


def full_attention(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    distance_bias: Float[Array, "H distances"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
    reach: tuple[int, int] | None = None,
) -> Float[Array, "B H S K"]:
    """softmax(scores) V, with all scores in memory. For arguments, see `blockwise_attention`."""
    length = query.shape[2]
    distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    bias = None if distance_bias is None else distance_bias[None, :, distance + length - 1]
    seen = (
        mask[:, None, None] if reach is None else mask[:, None, None] & is_within(reach, distance)
    )
    scores = adjust_scores(layer.scores(query), scale, soft_cap, bias, seen)
    return layer.weighted(jax.nn.softmax(scores, axis=-1).astype(query.dtype))


CPU_BLOCK = 512
"""Queries in a block on a CPU. A block has one head there, so that its scores fit in cache."""

BLOCK_SCORES = 1 << 27
"""The most scores of a block on GPU and TPU (512 MiB in float32). A block has all heads there."""


def blockwise_attention(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    distance_bias: Float[Array, "H distances"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
    reach: tuple[int, int] | None = None,
) -> Float[Array, "B H S K"]:
    """`full_attention`, computed one block of queries at a time.

    Memory grows linearly with S (Rabe and Staats, arXiv 2112.05682, without their key blocks). On
    a CPU each block has one head. For 12 heads and 1,536 tokens this takes 0.4 of the time of
    `full_attention`.

    mask: False for padding. scale: multiplies the scores. soft_cap: the bound of
    `scores.soft_cap`, None for no cap. reach: how many tokens before and after its own position a
    query sees, None for all. With a short reach, each block reads only the keys within it.
    """
    batch, heads, length, width = query.shape
    shared_by = heads // layer.key.shape[1]
    attend_block = functools.partial(_block, scale=scale, soft_cap=soft_cap, reach=reach)

    def on_cpu(query: Array, layer: KeyValue, mask: Array, bias: Array | None) -> Array:
        block = min(CPU_BLOCK, length)
        blocks = -(-length // block)
        padded = jnp.pad(query, ((0, 0), (0, 0), (0, blocks * block - length), (0, 0)))

        def one(index: jax.Array) -> jax.Array:
            row, head, start = (
                index // (heads * blocks),
                index // blocks % heads,
                index % blocks * block,
            )
            part = jax.lax.dynamic_slice(padded, (row, head, start, 0), (1, 1, block, width))
            return attend_block(
                part[0],
                jax.tree.map(lambda x: x[row, head // shared_by][None], layer),
                mask[row],
                None if bias is None else bias[head][None],
                start,
            )

        attended = jax.lax.map(one, jnp.arange(batch * heads * blocks))
        return attended.reshape(batch, heads, blocks * block, width)[:, :, :length]

    def elsewhere(query: Array, layer: KeyValue, mask: Array, bias: Array | None) -> Array:
        block = min(length, max(BLOCK_SCORES // (batch * heads * length), 16))
        blocks = -(-length // block)
        padded = jnp.pad(query, ((0, 0), (0, 0), (0, blocks * block - length), (0, 0)))

        def one(start: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(padded, start, block, axis=2)
            over_documents = jax.vmap(attend_block, in_axes=(0, 0, 0, None, None))
            return over_documents(part, layer, mask, bias, start)

        if blocks == 1:
            return one(jnp.int32(0))
        attended = jax.lax.map(one, jnp.arange(blocks) * block)
        whole = jnp.moveaxis(attended, 0, 2).reshape(batch, heads, blocks * block, width)
        return whole[:, :, :length]

    return jax.lax.platform_dependent(
        query, layer, mask, distance_bias, cpu=on_cpu, default=elsewhere
    )


def _block(
    query: Float[Array, "H queries K"],
    layer: KeyValue,
    mask: Bool[Array, " S"],
    distance_bias: Float[Array, "H distances"] | None,
    start: Int[Array, ""],
    *,
    scale: float,
    soft_cap: float | None,
    reach: tuple[int, int] | None,
) -> Float[Array, "H queries K"]:
    """Attention of one block of queries of one document. Its first query has position `start`."""
    length, keys = query.shape[1], layer.length()
    first: int | Array = 0
    if reach is not None and length + sum(reach) < keys:
        visible = length + sum(reach)
        first = jnp.clip(start - reach[0], 0, keys - visible)
        layer = layer.window(first, visible)
        mask = jax.lax.dynamic_slice_in_dim(mask, first, visible)
        keys = visible
    distance = first + jnp.arange(keys)[None, :] - (start + jnp.arange(length))[:, None]
    bias = None
    if distance_bias is not None:
        # Padding queries of the last block have distances outside the table. Their output is cut
        # off, so any bias is correct for them.
        bias = distance_bias[:, jnp.maximum(distance + distance_bias.shape[1] // 2, 0)]
    seen = mask[None] if reach is None else mask[None] & is_within(reach, distance)
    scores = adjust_scores(layer.scores(query), scale, soft_cap, bias, seen[None])
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = layer.weighted(weights.astype(query.dtype))
    return (attended / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)

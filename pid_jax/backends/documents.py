"""Self-attention of whole documents: all scores at once, or one block of queries at a time.

Letters beside those of `pid_jax.models.protocol`: a bias of distances has one column for each
distance of a key from its query, `distances` = 2 S - 1: 1 - S ... S - 1.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends.layouts import KeyValue
from pid_jax.backends.scores import adjusted, within


def attend_at_once(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    distance_bias: Float[Array, "H distances"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
    reach: tuple[int, int] | None = None,
) -> Float[Array, "B H S K"]:
    """Softmax of all scores, times the values. The arguments are those of `attend_by_blocks`."""
    length = query.shape[2]
    distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    bias = None if distance_bias is None else distance_bias[None, :, distance + length - 1]
    seen = mask[:, None, None] if reach is None else mask[:, None, None] & within(reach, distance)
    scores = adjusted(layer.scores(query), scale, soft_cap, bias, seen)
    return layer.weighted(jax.nn.softmax(scores, axis=-1).astype(query.dtype))


CPU_BLOCK = 512
"""Queries at a time on a CPU, of one head: their scores stay in its caches."""

BLOCK_SCORES = 1 << 27
"""Scores at a time elsewhere (512 MiB in float32), of all heads of a block of queries."""


def attend_by_blocks(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    distance_bias: Float[Array, "H distances"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
    reach: tuple[int, int] | None = None,
) -> Float[Array, "B H S K"]:
    """`attend_at_once`, but one block of queries after another.

    Memory grows with S, not with its square (Rabe and Staats, arXiv 2112.05682, without their
    blocks of keys): each block reads its biases from the distances. On a CPU a block has one
    head. With 12 heads of 1,536 tokens that takes 0.4 of the time of `attend_at_once` there.

    mask: False for padding. reach: how many tokens before and after itself a query sees, None for
    all. Where it is short, a block reads only the keys that its queries may see.
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
    query: Float[Array, "H L K"],
    layer: KeyValue,
    mask: Bool[Array, " S"],
    distance_bias: Float[Array, "H distances"] | None,
    start: Int[Array, ""],
    *,
    scale: float,
    soft_cap: float | None,
    reach: tuple[int, int] | None,
) -> Float[Array, "H L K"]:
    """The L queries from `start` on, of one document."""
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
        # Queries that only fill the last block have distances beyond the table. Any bias will do.
        bias = distance_bias[:, jnp.maximum(distance + distance_bias.shape[1] // 2, 0)]
    seen = mask[None] if reach is None else mask[None] & within(reach, distance)
    scores = adjusted(layer.scores(query), scale, soft_cap, bias, seen[None])
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = layer.weighted(weights.astype(query.dtype))
    return (attended / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)

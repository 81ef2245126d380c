"""Attention that families share: over several sources at once, and over whole documents."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.models.layers import precision_of
from pid_jax.models.protocol import KeyValue

MASKED_SCORE = -1e9
"""Stands for minus infinity, yet leaves a row in which everything is masked free of NaN."""


class Source(NamedTuple):
    """Something to attend to: keys, values and what is added to or struck from their scores."""

    layer: KeyValue
    mask: Bool[Array, "#B #L S"] | None = None
    """True where a query may look; None where it may look everywhere."""
    bias: Float[Array, "#B H L S"] | None = None


def attend(
    query: Float[Array, "B H L K"],
    sources: Sequence[Source],
    scale: float = 1.0,
    dropout: Callable[[jax.Array], jax.Array] = lambda weights: weights,
    soft_cap: float | None = None,
) -> Float[Array, "B H L K"]:
    """Attention with a single softmax, in float32, over all sources together.

    A decoder attends at once to what it has cached and to the tokens at hand without
    copying either into one array first. `dropout` is applied to the softmax's output.

    Sources may have fewer heads than the query, G: then each serves H / G consecutive heads of
    the query (Ainslie et al., arXiv 2305.13245), which to the products are more rows of the
    same head; keys and values are never repeated.
    """
    precision = precision_of(query.dtype)
    batch, heads, length, width = query.shape
    groups = sources[0].layer.key.shape[1]
    query = query.reshape(batch, groups, heads // groups * length, width)
    scores = []
    for (key, _), mask, bias in sources:
        score = jnp.einsum(
            "bhlk,bhks->bhls",
            query,
            key,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        score = score.reshape(batch, heads, length, key.shape[3])
        if scale != 1.0:
            score = score * scale
        if soft_cap is not None:
            score = capped(score, soft_cap)
        if bias is not None:
            score = score + bias
        if mask is not None:
            score = jnp.where(mask[:, None], score, MASKED_SCORE)
        scores.append(score)
    joined = scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)
    weights = dropout(jax.nn.softmax(joined, axis=-1).astype(query.dtype))
    weights = weights.reshape(batch, groups, heads // groups * length, weights.shape[-1])

    outputs = []
    start = 0
    for (_, value), _, _ in sources:
        stop = start + value.shape[3]
        part = weights[..., start:stop]
        outputs.append(_weighted(part, value, precision))
        start = stop
    return sum(outputs[1:], start=outputs[0]).reshape(batch, heads, length, width)


def capped(x: Float[Array, "*any"], bound: float) -> Float[Array, "*any"]:
    """Soft-capping: bends what comes near to `bound`, so that nothing passes it."""
    return jnp.tanh(x / bound) * bound


def _weighted(
    weights: Float[Array, "B H L S"],
    value: Float[Array, "B H K S"],
    precision: jax.lax.Precision | None,
) -> Float[Array, "B H L K"]:
    """The values' sums by weight. A CPU transposes the second operand first: the smaller one."""
    last = (((3,), (3,)), ((0, 1), (0, 1)))
    if weights.shape[2] < 8:
        return jax.lax.dot_general(value, weights, last, precision=precision).swapaxes(2, 3)
    return jax.lax.dot_general(weights, value, last, precision=precision)


CPU_BLOCK = 512
"""Queries at a time on a CPU, of one head: their scores stay in its caches."""


BLOCK_SCORES = 1 << 27
"""Scores at a time elsewhere (512 MiB in float32), of all heads of a block of queries."""


def attend_by_blocks(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    distance_bias: Float[Array, "H D"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
    reach: tuple[int, int] | None = None,
) -> Float[Array, "B H S K"]:
    """Self-attention of whole documents that never holds the scores of all of its queries.

    What `attend` gives for one source with `distance_bias[h, s - l + S - 1]` as its bias
    (D = 2 S - 1) and `within(reach)` in its mask, but one block of queries after another, each
    with the bias read from the distances as it is needed: memory grows with S, not with its
    square (Rabe and Staats, arXiv 2112.05682, without their blocks of keys). On a CPU blocks are
    of one head. With 12 heads of 1,536 tokens that takes 0.4 of `attend`'s time there. Where
    `reach` is short, a block reads only the keys that its queries may look at.
    """
    batch, heads, length, width = query.shape
    shared_by = heads // layer.key.shape[1]
    attend_block = functools.partial(_block, scale=scale, soft_cap=soft_cap, reach=reach)

    def on_cpu(query: Array, key: Array, value: Array, mask: Array, bias: Array | None) -> Array:
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
                key[row, head // shared_by][None],
                value[row, head // shared_by][None],
                mask[row],
                None if bias is None else bias[head][None],
                start,
            )

        attended = jax.lax.map(one, jnp.arange(batch * heads * blocks))
        return attended.reshape(batch, heads, blocks * block, width)[:, :, :length]

    def elsewhere(query: Array, key: Array, value: Array, mask: Array, bias: Array | None) -> Array:
        block = min(length, max(BLOCK_SCORES // (batch * heads * length), 16))
        blocks = -(-length // block)
        padded = jnp.pad(query, ((0, 0), (0, 0), (0, blocks * block - length), (0, 0)))

        def one(start: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(padded, start, block, axis=2)
            over_rows = jax.vmap(attend_block, in_axes=(0, 0, 0, 0, None, None))
            return over_rows(part, key, value, mask, bias, start)

        if blocks == 1:
            return one(jnp.int32(0))
        attended = jax.lax.map(one, jnp.arange(blocks) * block)
        whole = jnp.moveaxis(attended, 0, 2).reshape(batch, heads, blocks * block, width)
        return whole[:, :, :length]

    arguments = (query, layer.key, layer.value, mask, distance_bias)
    return jax.lax.platform_dependent(*arguments, cpu=on_cpu, default=elsewhere)


def _block(
    query: Float[Array, "H L K"],
    key: Float[Array, "G K S"],
    value: Float[Array, "G K S"],
    mask: Bool[Array, " S"],
    distance_bias: Float[Array, "H D"] | None,
    start: Int[Array, ""],
    *,
    scale: float,
    soft_cap: float | None,
    reach: tuple[int, int] | None,
) -> Float[Array, "H L K"]:
    """The queries from `start` on, of one document."""
    precision = precision_of(query.dtype)
    heads, length, width = query.shape
    first: int | Array = 0
    if reach is not None and length + sum(reach) < key.shape[2]:
        visible = length + sum(reach)
        first = jnp.clip(start - reach[0], 0, key.shape[2] - visible)
        key = jax.lax.dynamic_slice_in_dim(key, first, visible, axis=2)
        value = jax.lax.dynamic_slice_in_dim(value, first, visible, axis=2)
        mask = jax.lax.dynamic_slice_in_dim(mask, first, visible)
    groups, _, keys = key.shape
    scores = jnp.einsum(
        "hlk,hks->hls",
        query.reshape(groups, -1, width),
        key,
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(heads, length, keys)
    if scale != 1.0:
        scores = scores * scale
    if soft_cap is not None:
        scores = capped(scores, soft_cap)
    distance = first + jnp.arange(keys)[None, :] - (start + jnp.arange(length))[:, None]
    if distance_bias is not None:
        # Queries that only fill the last block have distances beyond the table; any will do.
        scores = scores + distance_bias[:, jnp.maximum(distance + distance_bias.shape[1] // 2, 0)]
    allowed = mask[None] if reach is None else mask[None] & within(reach, distance)
    scores = jnp.where(allowed, scores, MASKED_SCORE)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = jnp.einsum(
        "hls,hks->hlk",
        weights.astype(query.dtype).reshape(groups, -1, keys),
        value,
        precision=precision,
    ).reshape(heads, length, width)
    return (attended / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)


def within(reach: tuple[int, int], distance: Int[Array, "*any"]) -> Bool[Array, "*any"]:
    """Whether a key at this distance from its query may be seen: so far before, so far after."""
    return (distance >= -reach[0]) & (distance <= reach[1])


def causal_mask(length: int) -> Bool[Array, "1 {length} {length}"]:
    """True where a query may look at a key of the same sequence: at itself and before."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def split_heads(x: Float[Array, "B S HK"], heads: int) -> Float[Array, "B H S K"]:
    """A query projection's output as attention reads it."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def split_source_heads(x: Float[Array, "B S HK"], heads: int) -> Float[Array, "B H K S"]:
    """A key or value projection's output as attention reads it."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 3, 1)


def merge_heads(x: Float[Array, "B H S K"]) -> Float[Array, "B S HK"]:
    """The inverse of `split_heads`."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)

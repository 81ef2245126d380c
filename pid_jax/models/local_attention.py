"""Self-attention of long documents: to what is near, and to a few things from everywhere.

Beltagy et al., arXiv 2004.05150 (Longformer), and Guo et al., arXiv 2112.07916 (LongT5), differ
in what is seen from everywhere; the rest is `attend_nearby`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from pid_jax.models.attention import BLOCK_SCORES, MASKED_SCORE
from pid_jax.models.layers import precision_of
from pid_jax.models.protocol import KeyValue

FEWEST_QUERIES = 64
"""A block holds so many at least: matrix products of fewer rows would be slow."""


class Everywhere(NamedTuple):
    """What every query sees beside its neighbours: G further keys and values, G at least 1."""

    layer: KeyValue
    """`[B, H, K, G]`."""
    mask: Bool[Array, "B G"]
    distance_bias: Float[Array, "H D"] | None = None
    """Added to scores, by a key's index less its query's place: 1 - G ... G - 1, D = 2 G - 1."""
    places: Int[Array, "B J"] | None = None
    """The place among the G keys, 0 ... G - 1, of each `queries_per_place` queries in turn."""
    queries_per_place: int = 1


class Dropout(NamedTuple):
    """What training drops of the softmax's output."""

    key: Key[Array, ""]
    rate: float
    same_for_queries: bool
    """Whether queries that are computed together lose the same keys, in T5's manner."""


def attend_nearby(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    radius: int,
    distance_bias: Float[Array, "H D"] | None = None,
    everywhere: Everywhere | None = None,
    dropout: Dropout | None = None,
) -> Float[Array, "B H S K"]:
    """Attention of queries to keys at most `radius` away and to `everywhere`, in one softmax.

    mask: False for keys that are not to be seen from nearby. distance_bias: added to scores, by
    a key's position less its query's: -radius ... radius, D = 2 radius + 1. S may be any.
    Queries are taken in blocks no shorter than the radius, so that the keys that they see stand
    in their own block and the two beside it. The scores of a block are held no longer than it
    takes to use them, and computed again where they are differentiated: memory grows with S,
    time with S (radius + G). On a CPU blocks are of one head, so that scores stay in its caches.
    """
    batch, heads, length, width = query.shape
    per_place = 1 if everywhere is None else everywhere.queries_per_place
    block = _round_up(max(radius, FEWEST_QUERIES), per_place)
    if length <= 3 * block:  # then neighbours would only be more to compute
        block = _round_up(length, per_place)
    blocks = -(-length // block)
    near = _near_bias(heads, block, 1 if blocks == 1 else 3, radius, distance_bias)
    far, far_mask, far_bias, places, _ = everywhere or (None, None, None, None, 1)
    keys = None if dropout is None else jax.random.split(dropout.key, (batch, heads))

    def attend_all(over: _Over, blocks_at_once: int) -> Float[Array, "B H S K"]:
        def of_document(document: tuple[Any, ...]) -> Float[Array, "H S K"]:
            query, layer, mask, far, far_mask, places, keys = document

            def of_head(head: tuple[Any, ...]) -> Float[Array, "S K"]:
                query, layer, near, far, far_bias, key = head

                @jax.checkpoint
                def of_block(parts: tuple[Any, ...]) -> Float[Array, "L K"]:
                    query, layer, mask, places, key = parts
                    sources = [_Seen(layer, mask, near)]
                    if far is not None:
                        bias = None if places is None else _far_bias(far_bias, places, per_place)
                        sources.append(_Seen(far, far_mask, bias))
                    drop = None if dropout is None else dropout._replace(key=key)
                    return _attend(query, sources, drop)

                parts = (
                    _in_blocks(query.T, blocks, block).swapaxes(1, 2),
                    jax.tree.map(lambda x: _with_neighbours(x, blocks, block), layer),
                    _with_neighbours(mask, blocks, block),
                    None if places is None else _in_blocks(places, blocks, block // per_place),
                    None if key is None else jax.random.split(key, blocks),
                )
                attended = jax.lax.map(of_block, parts, batch_size=min(blocks_at_once, blocks))
                return attended.reshape(blocks * block, width)[:length]

            return over(of_head, (query, layer, near, far, far_bias, keys))

        return over(of_document, (query, layer, mask, far, far_mask, places, keys))

    def on_cpu() -> Float[Array, "B H S K"]:
        return attend_all(jax.lax.map, 1)

    def elsewhere() -> Float[Array, "B H S K"]:
        seen = near.shape[2] + (0 if far_mask is None else far_mask.shape[1])
        return attend_all(_at_once, max(BLOCK_SCORES // (batch * heads * block * seen), 1))

    return jax.lax.platform_dependent(cpu=on_cpu, default=elsewhere)


_Over = Callable[[Callable[[tuple[Any, ...]], Array], tuple[Any, ...]], Any]
"""Runs a function on each element of the arrays' first axis."""


def _at_once(function: Callable[[tuple[Any, ...]], Array], arrays: tuple[Any, ...]) -> Any:
    return jax.vmap(function)(arrays)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _in_blocks(x: Array, blocks: int, block: int) -> Array:
    """Cuts the last axis in blocks, `[..., S]` to `[blocks, ..., block]`, the last one padded."""
    room = blocks * block - x.shape[-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, room)])
    return jnp.moveaxis(padded.reshape(*x.shape[:-1], blocks, block), -2, 0)


def _with_neighbours(x: Array, blocks: int, block: int) -> Array:
    """`_in_blocks`, and each block joined to the two beside it, if there are several.

    Zeros stand where there is none. That takes three times the memory of `x`.
    """
    cut = _in_blocks(x, blocks, block)
    if blocks == 1:
        return cut
    none = jnp.zeros_like(cut[:1])
    before, after = jnp.concatenate([none, cut[:-1]]), jnp.concatenate([cut[1:], none])
    return jnp.concatenate([before, cut, after], axis=-1)


def _near_bias(
    heads: int, block: int, spans: int, radius: int, distance_bias: Float[Array, "H D"] | None
) -> Float[Array, "H L W"]:
    """What is added to the scores of any block's queries and the keys of 1 or 3 blocks."""
    keys = np.arange(spans * block) - (block if spans == 3 else 0)
    distance = keys[None, :] - np.arange(block)[:, None]
    within = np.abs(distance) <= radius
    if distance_bias is None:
        bias = jnp.where(within, 0.0, MASKED_SCORE)
        return jnp.broadcast_to(bias, (heads, *bias.shape))
    index = np.clip(distance + radius, 0, 2 * radius)
    return jnp.where(within, distance_bias[:, index], MASKED_SCORE)


def _far_bias(
    distance_bias: Float[Array, " D"], places: Int[Array, " J"], per_place: int
) -> Float[Array, "L G"]:
    """Each query's slice of the biases: those at G distances, from that of the first key on."""
    sources = (len(distance_bias) + 1) // 2
    rows = jax.vmap(
        lambda place: jax.lax.dynamic_slice(distance_bias, (sources - 1 - place,), (sources,))
    )(places)
    return jnp.repeat(rows, per_place, axis=0)


class _Seen(NamedTuple):
    """What the queries of a block see: W keys."""

    layer: KeyValue
    """`[K, W]`."""
    mask: Bool[Array, " W"]
    bias: Float[Array, "L W"] | None


def _attend(
    query: Float[Array, "L K"], sources: list[_Seen], dropout: Dropout | None
) -> Float[Array, "L K"]:
    """One block of one head, with one softmax in float32 over all sources."""
    precision = precision_of(query.dtype)
    scores = []
    for layer, mask, bias in sources:
        score = jnp.dot(query, layer.key, precision=precision, preferred_element_type=jnp.float32)
        if bias is not None:
            score = score + bias
        # Added: differentiating a choice would keep it for every block.
        scores.append(score + jnp.where(mask, 0.0, MASKED_SCORE))
    top = functools.reduce(jnp.maximum, [score.max(-1, keepdims=True) for score in scores])
    weights = [jnp.exp(score - jax.lax.stop_gradient(top)) for score in scores]
    total = functools.reduce(jnp.add, [weight.sum(-1, keepdims=True) for weight in weights])
    if dropout is not None:
        weights = [
            _dropped(weight, dropout._replace(key=jax.random.fold_in(dropout.key, i)))
            for i, weight in enumerate(weights)
        ]
    attended = [
        jnp.einsum("lw,kw->lk", weight.astype(query.dtype), layer.value, precision=precision)
        for weight, (layer, _, _) in zip(weights, sources, strict=True)
    ]
    return (functools.reduce(jnp.add, attended) / total).astype(query.dtype)


def _dropped(weights: Float[Array, "L W"], dropout: Dropout) -> Float[Array, "L W"]:
    queries = 1 if dropout.same_for_queries else len(weights)
    kept = jax.random.bernoulli(dropout.key, 1 - dropout.rate, (queries, weights.shape[1]))
    return weights * (kept / (1 - dropout.rate))

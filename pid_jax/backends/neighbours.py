"""Self-attention of long documents: to what is near, and to a few keys that every query sees.

Beltagy et al., arXiv 2004.05150 (Longformer), and Guo et al., arXiv 2112.07916 (LongT5), differ in
what every query sees. The rest is `attend_nearby`.

Letters beside those of `pid_jax.models.protocol`: G keys that every query sees, `near` = 2 radius
+ 1 distances of keys nearby, `far` = 2 G - 1 distances among the G keys, J groups of queries.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from pid_jax.backends.documents import BLOCK_SCORES
from pid_jax.backends.layouts import KeyValue
from pid_jax.backends.scores import MASKED_SCORE

FEWEST_QUERIES = 64
"""The least number of queries in a block: products of fewer rows would be slow."""


class Everywhere(NamedTuple):
    """What every query sees beside its neighbours: G further keys and values, G at least 1."""

    layer: KeyValue
    """Of G tokens."""
    mask: Bool[Array, "B G"]
    distance_bias: Float[Array, "H far"] | None = None
    """Added to scores, by a key's index less its query's centre: 1 - G ... G - 1."""
    centres: Int[Array, "B J"] | None = None
    """The index among the G keys, 0 ... G - 1, of each `queries_per_centre` queries in turn."""
    queries_per_centre: int = 1


class AttentionDropout(NamedTuple):
    """What training drops of the softmax's output."""

    key: Key[Array, ""]
    rate: float
    same_for_queries: bool
    """Whether queries of the same block lose the same keys, in T5's manner."""


def attend_nearby_at_once(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    radius: int,
    distance_bias: Float[Array, "H near"] | None = None,
    everywhere: Everywhere | None = None,
) -> Float[Array, "B H S K"]:
    """Softmax of all scores, times the values. The arguments are those of `attend_nearby`."""
    length = query.shape[2]
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    scores = layer.scores(query)
    if distance_bias is not None:
        scores = scores + distance_bias[None, :, np.clip(distance + radius, 0, 2 * radius)]
    seen = mask[:, None, None, :] & (np.abs(distance) <= radius)
    scores = jnp.where(seen, scores, MASKED_SCORE)
    if everywhere is not None:
        far = everywhere.layer.scores(query)
        if everywhere.centres is not None and everywhere.distance_bias is not None:
            count = everywhere.layer.length()
            centres = jnp.repeat(everywhere.centres, everywhere.queries_per_centre, axis=1)
            index = jnp.arange(count) - centres[:, :length, None] + count - 1
            far = far + everywhere.distance_bias[:, index].transpose(1, 0, 2, 3)
        far = jnp.where(everywhere.mask[:, None, None, :], far, MASKED_SCORE)
        scores = jnp.concatenate([scores, far], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    attended = layer.weighted(weights[..., :length])
    if everywhere is None:
        return attended
    return attended + everywhere.layer.weighted(weights[..., length:])


def attend_nearby(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    radius: int,
    distance_bias: Float[Array, "H near"] | None = None,
    everywhere: Everywhere | None = None,
    dropout: AttentionDropout | None = None,
) -> Float[Array, "B H S K"]:
    """Attention of queries to keys at most `radius` away and to `everywhere`, in one softmax.

    `attend_nearby_at_once`, but in blocks of queries no shorter than the radius, so that the keys
    that they see stand in their own block and the two beside it. The scores of a block are
    computed again where they are differentiated: memory grows with S, time with S (radius + G). On
    a CPU a block has one head, so that its scores stay in cache.

    mask: False for keys that are not to be seen from nearby. distance_bias: added to scores, by a
    key's position less its query's. S may be any.
    """
    batch, heads, length, width = query.shape
    per_centre = 1 if everywhere is None else everywhere.queries_per_centre
    block = _round_up(max(radius, FEWEST_QUERIES), per_centre)
    if length <= 3 * block:  # then neighbours would only be more to compute
        block = _round_up(length, per_centre)
    blocks = -(-length // block)
    near = _near_bias(heads, block, 1 if blocks == 1 else 3, radius, distance_bias)
    far, far_mask, far_bias, centres, _ = everywhere or (None, None, None, None, 1)
    keys = None if dropout is None else jax.random.split(dropout.key, (batch, heads))

    def attend_all(over: _Over, blocks_at_once: int) -> Float[Array, "B H S K"]:
        def of_document(document: tuple[Any, ...]) -> Float[Array, "H S K"]:
            query, layer, mask, far, far_mask, centres, keys = document

            def of_head(head: tuple[Any, ...]) -> Float[Array, "S K"]:
                query, layer, near, far, far_bias, key = head

                @jax.checkpoint
                def of_block(parts: tuple[Any, ...]) -> Float[Array, "L K"]:
                    query, layer, mask, centres, key = parts
                    sources = [_Seen(layer, mask, near)]
                    if far is not None:
                        bias = None
                        if centres is not None:
                            bias = _far_bias(far_bias, centres, per_centre)
                        sources.append(_Seen(far, far_mask, bias))
                    drop = None if dropout is None else dropout._replace(key=key)
                    return _attend(query, sources, drop)

                axis = layer.layout.attended_axis
                parts = (
                    _in_blocks(query, blocks, block, axis=-2),
                    jax.tree.map(lambda x: _with_neighbours(x, blocks, block, axis), layer),
                    _with_neighbours(mask, blocks, block),
                    None if centres is None else _in_blocks(centres, blocks, block // per_centre),
                    None if key is None else jax.random.split(key, blocks),
                )
                attended = jax.lax.map(of_block, parts, batch_size=min(blocks_at_once, blocks))
                return attended.reshape(blocks * block, width)[:length]

            return over(of_head, (query, layer, near, far, far_bias, keys))

        return over(of_document, (query, layer, mask, far, far_mask, centres, keys))

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


def _in_blocks(x: Array, blocks: int, block: int, axis: int = -1) -> Array:
    """Cuts an axis in blocks, `[..., S, ...]` to `[blocks, ..., block, ...]`, the last one padded.

    axis: counted from the end.
    """
    axis = x.ndim + axis
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, blocks * block - x.shape[axis])
    cut = jnp.pad(x, widths).reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 0)


def _with_neighbours(x: Array, blocks: int, block: int, axis: int = -1) -> Array:
    """`_in_blocks`, and each block joined to the two beside it, if there are several.

    Zeros stand where there is none. That takes three times the memory of `x`.
    """
    cut = _in_blocks(x, blocks, block, axis)
    if blocks == 1:
        return cut
    none = jnp.zeros_like(cut[:1])
    before, after = jnp.concatenate([none, cut[:-1]]), jnp.concatenate([cut[1:], none])
    return jnp.concatenate([before, cut, after], axis=axis)


def _near_bias(
    heads: int, block: int, spans: int, radius: int, distance_bias: Float[Array, "H near"] | None
) -> Float[Array, "H L keys"]:
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
    distance_bias: Float[Array, " far"], centres: Int[Array, " J"], per_centre: int
) -> Float[Array, "L G"]:
    """Each query's slice of the biases: those at G distances, from that of the first key on."""
    sources = (len(distance_bias) + 1) // 2
    rows = jax.vmap(
        lambda centre: jax.lax.dynamic_slice(distance_bias, (sources - 1 - centre,), (sources,))
    )(centres)
    return jnp.repeat(rows, per_centre, axis=0)


class _Seen(NamedTuple):
    """What the queries of a block see, of one head."""

    layer: KeyValue
    mask: Bool[Array, " keys"]
    bias: Float[Array, "L keys"] | None


def _attend(
    query: Float[Array, "L K"], sources: list[_Seen], dropout: AttentionDropout | None
) -> Float[Array, "L K"]:
    """One block of one head, with one softmax in float32 over all sources."""
    scores = []
    for layer, mask, bias in sources:
        score = layer.layout.scores(query, layer.key)
        if bias is not None:
            score = score + bias
        # Added: differentiating a choice would store it for every block.
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
        layer.layout.weighted(weight.astype(query.dtype), layer.value)
        for weight, (layer, _, _) in zip(weights, sources, strict=True)
    ]
    return (functools.reduce(jnp.add, attended) / total).astype(query.dtype)


def _dropped(weights: Float[Array, "L keys"], dropout: AttentionDropout) -> Float[Array, "L keys"]:
    queries = 1 if dropout.same_for_queries else len(weights)
    stays = jax.random.bernoulli(dropout.key, 1 - dropout.rate, (queries, weights.shape[1]))
    return weights * (stays / (1 - dropout.rate))

"""Self-attention of long documents: to keys nearby, and to a few keys that every query sees.

Longformer (Beltagy et al., arXiv 2004.05150) and LongT5 (Guo et al., arXiv 2112.07916) have
different keys that every query sees. `local_attention` serves both.

Sizes beside the letters of `pid_jax.models.protocol`:

    globals            keys that every query sees
    local_distances    2 radius + 1, the distances of keys nearby
    global_distances   2 globals - 1, the distances among the global keys
    groups             groups of consecutive queries that share a centre
    queries, keys      the queries of a block, and the keys that they see
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends.blockwise_attention import BLOCK_SCORES
from pid_jax.backends.dropout import AttentionDropout as AttentionDropout
from pid_jax.backends.layouts import KeyValue
from pid_jax.backends.scores import MASKED_SCORE

FEWEST_QUERIES = 64
"""The smallest number of queries in a block. Products with fewer rows are slow."""


class GlobalKeys(NamedTuple):
    """Keys and values that every query sees in addition to those nearby. There is at least one."""

    layer: KeyValue
    """`Float["B H globals K"]`, in its layout."""
    mask: Bool[Array, "B globals"]
    """False for keys that no query sees."""
    distance_bias: Float[Array, "H global_distances"] | None = None
    """Added to scores, by the key's index minus the centre of its query."""
    centres: Int[Array, "B groups"] | None = None
    """For each group of queries, the index of the global key from which distances count."""
    queries_per_centre: int = 1
    """The number of consecutive queries in a group."""


def local_attention_reference(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    radius: int,
    distance_bias: Float[Array, "H local_distances"] | None = None,
    global_keys: GlobalKeys | None = None,
) -> Float[Array, "B H S K"]:
    """softmax(scores) V, with all scores in memory. For arguments, see `local_attention`."""
    length = query.shape[2]
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    scores = layer.scores(query)
    if distance_bias is not None:
        scores = scores + distance_bias[None, :, np.clip(distance + radius, 0, 2 * radius)]
    seen = mask[:, None, None, :] & (np.abs(distance) <= radius)
    scores = jnp.where(seen, scores, MASKED_SCORE)
    if global_keys is not None:
        global_scores = global_keys.layer.scores(query)
        if global_keys.centres is not None and global_keys.distance_bias is not None:
            count = global_keys.layer.length()
            centres = jnp.repeat(global_keys.centres, global_keys.queries_per_centre, axis=1)
            index = jnp.arange(count) - centres[:, :length, None] + count - 1
            bias = global_keys.distance_bias[:, index].transpose(1, 0, 2, 3)
            global_scores = global_scores + bias
        global_scores = jnp.where(global_keys.mask[:, None, None, :], global_scores, MASKED_SCORE)
        scores = jnp.concatenate([scores, global_scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    attended = layer.weighted(weights[..., :length])
    if global_keys is None:
        return attended
    return attended + global_keys.layer.weighted(weights[..., length:])


def local_attention(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    radius: int,
    distance_bias: Float[Array, "H local_distances"] | None = None,
    global_keys: GlobalKeys | None = None,
    dropout: AttentionDropout | None = None,
) -> Float[Array, "B H S K"]:
    """One softmax over the keys at most `radius` away from a query and over the global keys.

    Computes `local_attention_reference` in blocks of at least `radius` queries. So all keys nearby
    are in the same block or in the two adjacent blocks. Differentiation recomputes the scores of a
    block. Memory grows linearly with S, and time with S (radius + globals). On a CPU, each block
    has one head, so that its scores fit in cache.

    mask: False for keys that no query sees as keys nearby. distance_bias: added to scores, by the
    key's position minus the query's, -radius ... radius.
    """
    batch, heads, length, width = query.shape
    per_centre = 1 if global_keys is None else global_keys.queries_per_centre
    block = _round_up(max(radius, FEWEST_QUERIES), per_centre)
    if length <= 3 * block:  # adjacent blocks would only add work
        block = _round_up(length, per_centre)
    blocks = -(-length // block)
    local_bias = _local_bias(heads, block, 1 if blocks == 1 else 3, radius, distance_bias)
    global_layer, global_mask, global_bias, centres, _ = global_keys or (None, None, None, None, 1)
    keys = None if dropout is None else jax.random.split(dropout.key, (batch, heads))

    def attend_all(map_elements: _MapElements, blocks_at_once: int) -> Float[Array, "B H S K"]:
        def of_document(document: tuple[Any, ...]) -> Float[Array, "H S K"]:
            query, layer, mask, global_layer, global_mask, centres, keys = document

            def of_head(head: tuple[Any, ...]) -> Float[Array, "S K"]:
                query, layer, local_bias, global_layer, global_bias, key = head

                @jax.checkpoint
                def of_block(parts: tuple[Any, ...]) -> Float[Array, "queries K"]:
                    query, layer, mask, centres, key = parts
                    sources = [_HeadKeys(layer, mask, local_bias)]
                    if global_layer is not None:
                        bias = None
                        if centres is not None:
                            bias = _global_bias(global_bias, centres, per_centre)
                        sources.append(_HeadKeys(global_layer, global_mask, bias))
                    drop = None if dropout is None else dropout._replace(key=key)
                    return _attend(query, sources, drop)

                axis = layer.layout.attended_axis
                parts = (
                    _in_blocks(query, blocks, block, axis=-2),
                    jax.tree.map(lambda x: _with_adjacent_blocks(x, blocks, block, axis), layer),
                    _with_adjacent_blocks(mask, blocks, block),
                    None if centres is None else _in_blocks(centres, blocks, block // per_centre),
                    None if key is None else jax.random.split(key, blocks),
                )
                attended = jax.lax.map(of_block, parts, batch_size=min(blocks_at_once, blocks))
                return attended.reshape(blocks * block, width)[:length]

            return map_elements(
                of_head, (query, layer, local_bias, global_layer, global_bias, keys)
            )

        return map_elements(
            of_document, (query, layer, mask, global_layer, global_mask, centres, keys)
        )

    def on_cpu() -> Float[Array, "B H S K"]:
        return attend_all(jax.lax.map, 1)

    def elsewhere() -> Float[Array, "B H S K"]:
        keys_seen = local_bias.shape[2] + (0 if global_mask is None else global_mask.shape[1])
        return attend_all(
            _vmap_elements, max(BLOCK_SCORES // (batch * heads * block * keys_seen), 1)
        )

    return jax.lax.platform_dependent(cpu=on_cpu, default=elsewhere)


_MapElements = Callable[[Callable[[tuple[Any, ...]], Array], tuple[Any, ...]], Any]
"""Maps a function over the first axis of arrays."""


def _vmap_elements(function: Callable[[tuple[Any, ...]], Array], arrays: tuple[Any, ...]) -> Any:
    return jax.vmap(function)(arrays)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _in_blocks(x: Array, blocks: int, block: int, axis: int = -1) -> Array:
    """Splits an axis into blocks: `[..., S, ...]` to `[blocks, ..., block, ...]`. Pads the last.

    axis: counted from the end.
    """
    axis = x.ndim + axis
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, blocks * block - x.shape[axis])
    cut = jnp.pad(x, widths).reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 0)


def _with_adjacent_blocks(x: Array, blocks: int, block: int, axis: int = -1) -> Array:
    """`_in_blocks`, with each block joined to the two adjacent ones, unless there is only one.

    Zeros stand for the missing blocks at both ends. The result has three times the size of `x`.
    """
    cut = _in_blocks(x, blocks, block, axis)
    if blocks == 1:
        return cut
    zeros = jnp.zeros_like(cut[:1])
    before, after = jnp.concatenate([zeros, cut[:-1]]), jnp.concatenate([cut[1:], zeros])
    return jnp.concatenate([before, cut, after], axis=axis)


def _local_bias(
    heads: int,
    block: int,
    spans: int,
    radius: int,
    distance_bias: Float[Array, "H local_distances"] | None,
) -> Float[Array, "H queries keys"]:
    """The bias of a block's queries and the keys of `spans` blocks, 1 or 3. It is also the mask."""
    keys = np.arange(spans * block) - (block if spans == 3 else 0)
    distance = keys[None, :] - np.arange(block)[:, None]
    visible = np.abs(distance) <= radius
    if distance_bias is None:
        bias = jnp.where(visible, 0.0, MASKED_SCORE)
        return jnp.broadcast_to(bias, (heads, *bias.shape))
    index = np.clip(distance + radius, 0, 2 * radius)
    return jnp.where(visible, distance_bias[:, index], MASKED_SCORE)


def _global_bias(
    distance_bias: Float[Array, " global_distances"],
    centres: Int[Array, " groups"],
    per_centre: int,
) -> Float[Array, "queries globals"]:
    """The biases of global keys for each query, a slice of `distance_bias`."""
    count = (len(distance_bias) + 1) // 2
    rows = jax.vmap(
        lambda centre: jax.lax.dynamic_slice(distance_bias, (count - 1 - centre,), (count,))
    )(centres)
    return jnp.repeat(rows, per_centre, axis=0)


class _HeadKeys(NamedTuple):
    """Keys and values of one head that the queries of one block see."""

    layer: KeyValue
    mask: Bool[Array, " keys"]
    bias: Float[Array, "queries keys"] | None


def _attend(
    query: Float[Array, "queries K"], sources: list[_HeadKeys], dropout: AttentionDropout | None
) -> Float[Array, "queries K"]:
    """Attention of one block and head, with one softmax in float32 over all sources."""
    scores = []
    for layer, mask, bias in sources:
        score = layer.layout.scores(query, layer.key)
        if bias is not None:
            score = score + bias
        # A sum, because the gradient of `jnp.where` would store the mask of every block.
        scores.append(score + jnp.where(mask, 0.0, MASKED_SCORE))
    top = functools.reduce(jnp.maximum, [score.max(-1, keepdims=True) for score in scores])
    weights = [jnp.exp(score - jax.lax.stop_gradient(top)) for score in scores]
    total = functools.reduce(jnp.add, [weight.sum(-1, keepdims=True) for weight in weights])
    if dropout is not None:
        weights = [
            _apply_dropout(weight, dropout._replace(key=jax.random.fold_in(dropout.key, i)))
            for i, weight in enumerate(weights)
        ]
    attended = [
        layer.layout.weighted(weight.astype(query.dtype), layer.value)
        for weight, (layer, _, _) in zip(weights, sources, strict=True)
    ]
    return (functools.reduce(jnp.add, attended) / total).astype(query.dtype)


def _apply_dropout(
    weights: Float[Array, "queries keys"], dropout: AttentionDropout
) -> Float[Array, "queries keys"]:
    queries = 1 if dropout.same_for_queries else len(weights)
    stays = jax.random.bernoulli(dropout.key, 1 - dropout.rate, (queries, weights.shape[1]))
    return weights * (stays / (1 - dropout.rate))

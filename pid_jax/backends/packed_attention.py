"""Attention in which the prompts of a document are packed into one sequence, for a TPU.

Decoding, scoring and evaluation run it, which have no dropout. `jax.vmap` over prompts turns the
attention of P prompts to their caches into P tiny products per document and head. A TPU's matrix
unit takes the same time for a product of P queries with the keys of P prompts, of which a
block-diagonal mask then selects each query's own. So the batching rule of `packed_attention`
computes that product.

Sizes beside the letters of `pid_jax.models.protocol`: `pack` prompts share one product.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pid_jax.backends.layouts import KeyValue
from pid_jax.backends.matmul import precision_of
from pid_jax.backends.scores import adjust_scores


class Source(NamedTuple):
    """Something to attend to: keys and values, and what changes their scores."""

    layer: KeyValue
    """`Float["B G S K"]`, in their layout."""
    mask: Bool[Array, "#B #L S"] | None = None
    """True where a query may look. None where it may look everywhere."""
    bias: Float[Array, "#B H L S"] | None = None
    """Added to the scores."""


PACK = 32
"""The most prompts that share one product. Its scores are `PACK` times those that count."""

PACKED_QUERIES = 1024
"""With more queries than this in a product, prompts are not packed."""


def joint_attention(
    query: Float[Array, "B H L K"],
    sources: Sequence[Source],
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> Float[Array, "B H L K"]:
    """One softmax, in float32, over all sources, without joining their scores in one array."""
    scores = []
    for source in sources:
        seen = None if source.mask is None else source.mask[:, None]
        products = source.layer.scores(query)
        scores.append(adjust_scores(products, scale, soft_cap, source.bias, seen))
    weights = [jax.nn.softmax(score, axis=-1).astype(query.dtype) for score in scores]
    attended = [
        source.layer.weighted(weight) for weight, source in zip(weights, sources, strict=True)
    ]
    return _joined(attended, [jax.nn.logsumexp(score, -1, keepdims=True) for score in scores])


def packed_attention(
    query: Float[Array, "B H L K"],
    sources: Sequence[Source],
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> Float[Array, "B H L K"]:
    """`joint_attention`. Vmapped calls are packed.

    Keys and values that all vmapped calls share, such as those of a document, are read once for
    all. The gradient is that of `joint_attention`, whose scores it computes again.
    """
    return _packed(scale, soft_cap)(query, tuple(sources))


@functools.cache
def _packed(scale: float, soft_cap: float | None) -> Callable[..., Any]:
    def plain(query: Array, sources: tuple[Source, ...]) -> Array:
        return joint_attention(query, sources, scale, soft_cap)

    @jax.custom_batching.custom_vmap
    def attend(query: Array, sources: tuple[Source, ...]) -> Array:
        return plain(query, sources)

    @attend.def_vmap
    def attend_all(
        size: int, batched: Any, query: Array, sources: tuple[Source, ...]
    ) -> tuple[Array, bool]:
        query_batched, sources_batched = batched
        if not query_batched:
            query = jnp.broadcast_to(query, (size, *query.shape))
        _, batch, heads, length, width = query.shape
        groups = sources[0].layer.groups()
        # A row for each prompt, for each query head of a key/value head, and for each token.
        rows = query.reshape(size, batch, groups, -1, length, width).transpose(1, 0, 3, 4, 2, 5)
        rows = rows.reshape(batch, -1, groups, width)
        attended, shares = [], []
        for source, of_source in zip(sources, sources_batched, strict=True):
            part = _part(source, of_source, batch, (size, heads // groups, length))
            scores = jnp.einsum(
                f"bqgk,b{part.axes}->bgqs",
                rows.reshape(len(part.key), -1, groups, width),
                part.key,
                precision=precision_of(query.dtype),
                preferred_element_type=jnp.float32,
            )
            scores = adjust_scores(scores, scale, soft_cap, part.bias, part.mask)
            weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
            sums = jnp.einsum(
                f"bgqs,b{part.axes}->bqgk",
                weights,
                part.value,
                precision=precision_of(query.dtype),
            )
            attended.append(sums.reshape(rows.shape))
            if len(sources) > 1:
                share = jax.nn.logsumexp(scores, axis=-1, keepdims=True).swapaxes(1, 2)
                shares.append(share.reshape(*rows.shape[:-1], 1))
        joined = _joined(attended, shares)
        joined = joined.reshape(batch, size, -1, length, groups, width).transpose(1, 0, 4, 2, 3, 5)
        return joined.reshape(query.shape), True

    def forward(query: Array, sources: tuple[Source, ...]) -> tuple[Array, Any]:
        return attend(query, sources), (query, sources)

    def backward(arguments: Any, gradient: Array) -> Any:
        return jax.vjp(plain, *arguments)[1](gradient)

    differentiable = jax.custom_vjp(lambda query, sources: attend(query, sources))
    differentiable.defvjp(forward, backward)
    return differentiable


def pack_size(prompts: int, queries: int) -> int:
    """How many of so many prompts, with so many queries each, share one product: a divisor.

    A number without a divisor between a quarter of the greatest size and that size, such as a
    prime, is one pack if it is at most twice the greatest size.
    """
    most = max(min(PACK, PACKED_QUERIES // queries), 1)
    size = max(size for size in range(1, min(most, prompts) + 1) if prompts % size == 0)
    return prompts if 4 * size < most and prompts <= 2 * most else size


def _joined(attended: Sequence[Array], shares: Sequence[Array]) -> Array:
    """Attention to several sources with one softmax, from the attention to each with its own.

    attended: of each source. shares: the logarithm of the sum of its exponentials.
    """
    if len(attended) == 1:
        return attended[0]
    share = jax.nn.softmax(jnp.stack(shares), axis=0)
    return sum(
        (x.astype(jnp.float32) * share[i] for i, x in enumerate(attended)), start=jnp.float32(0)
    ).astype(attended[0].dtype)


class _Part(NamedTuple):
    """A source of all prompts, ready for one product per document, or per pack of prompts."""

    key: Array
    value: Array
    axes: str
    """The order of the axes of keys and values after the first."""
    mask: Bool[Array, "#parts 1 rows keys"] | None
    bias: Float[Array, "#parts G rows keys"] | None


def _part(source: Source, batched: Source, batch: int, sizes: tuple[int, int, int]) -> _Part:
    """batched: which leaves have a leading axis of prompts. sizes: P, R queries per key, L."""
    prompts, repeats, length = sizes
    own, layer = any(jax.tree.leaves(batched.layer)), source.layer
    if own:
        layer = jax.tree.map(
            lambda x, is_own: x if is_own else jnp.broadcast_to(x, (prompts, *x.shape)),
            layer,
            batched.layer,
        )
    pack = pack_size(prompts, length) if own else prompts
    packs = prompts // pack
    groups, slots = source.layer.groups(), source.layer.length()

    def by_pack(x: Array, has_prompts: bool) -> Array:
        """`[#B, #packs, #pack, ...]`."""
        if not has_prompts:
            return x[:, None, None]
        x = x.swapaxes(0, 1)
        return x.reshape(len(x), packs, pack, *x.shape[2:])

    def spread(x: Array) -> Array:
        """`[#B, #packs, #pack, #G, #R, #L, S]` as `[#parts, #G, rows, keys]`."""
        x = x.transpose(0, 1, 3, 2, 4, 5, 6)
        keys: tuple[int, ...] = (slots,)
        if own:  # the prompt is that of the key
            x, keys = jnp.moveaxis(x, 3, 5)[:, :, :, None], (pack, slots)
        parts = (1, 1) if x.shape[0] * x.shape[1] == 1 else (batch, packs)
        x = jnp.broadcast_to(x, (*parts, x.shape[2], pack, repeats, length, *keys))
        return x.reshape(math.prod(parts), x.shape[2], pack * repeats * length, -1)

    mask = bias = None
    if source.mask is not None:
        mask = spread(by_pack(source.mask, bool(batched.mask))[:, :, :, None, None])
    if source.bias is not None:
        x = by_pack(source.bias, bool(batched.bias))
        bias = spread(x.reshape(*x.shape[:3], groups, repeats, *x.shape[4:]))
    if own:
        same = np.repeat(np.arange(pack), repeats * length)[:, None] == np.repeat(
            np.arange(pack), slots
        )
        mask = jnp.asarray(same[None, None]) if mask is None else mask & same

    def laid_out(x: Array) -> tuple[Array, str]:
        if not own:
            return layer.layout.with_axes(x)
        x, axes = layer.layout.with_axes(x.swapaxes(0, 1))
        # The slots of a pack one after the other.
        x = jnp.moveaxis(x, 2 + axes.index("s"), 2)
        x = x.reshape(batch * packs, pack * slots, *x.shape[3:])
        return x, "s" + axes.replace("s", "")

    key, axes = laid_out(layer.key)
    return _Part(key, laid_out(layer.value)[0], axes, mask, bias)

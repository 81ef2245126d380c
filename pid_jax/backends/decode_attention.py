"""Attention of decode steps on GPUs: one kernel for the key/value cache, one for the document.

A decode step has one query per prompt. The plain version is about ten kernels a layer, most of
which take less time than their launch. Here the scores, their biases, masks and soft cap, the
softmax and the weighted sum are one Pallas kernel (`decode_kernels.py`).

The kernels can also apply RMSNorm, which then needs no kernel of its own. RMSNorm multiplies each
row by a factor and each column by a scale. The scale is part of the product's kernel
(`projections.py`), and the product of a row with a factor is the factor times the product.

`jax.vmap` over prompts adds queries to the kernels. The keys and values of a document are read
once for all of its prompts. None of these functions supports reverse-mode differentiation.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pid_jax.backends.decode_kernels import (
    CacheArrays,
    DocumentArrays,
    Scoring,
    cache_attention,
    document_attention,
    norm_tile,
)
from pid_jax.backends.layouts import ATTENDED_FIRST, KeyValue
from pid_jax.backends.scores import adjust_scores
from pid_jax.backends.settings import backend_settings, current_platform

WIDEST_NORM = 2048
"""The widest input whose root mean square the attention kernels compute. The program of each head
reads the input of its queries. For wider inputs that takes longer than a kernel of its own."""
NARROWEST_TILE = 32


AttendedSource = tuple[KeyValue, Any, Any]
"""Keys and values, mask and bias: a `Source` of `pid_jax.models.attention`."""


def computes_norm(width: int) -> bool:
    """Whether the kernels apply an RMSNorm of inputs of this width."""
    return width <= WIDEST_NORM and norm_tile(width) >= NARROWEST_TILE


def fits(layer: KeyValue) -> bool:
    """Whether the backend's settings name the kernels, and they read such keys and values."""
    width = layer.key.shape[-1]
    return (
        backend_settings().decode_kernels
        and layer.layout == ATTENDED_FIRST
        and width >= 16
        and width & (width - 1) == 0
    )


def fits_cache(length: int, past: AttendedSource, bias: Float[Array, "#B H L L"] | None) -> bool:
    """Whether `attend_to_cache` can attend to `past` and to `length` new tokens."""
    layer, mask, past_bias = past
    same_for_all = all(one is None or len(one) == 1 for one in (past_bias, bias))
    return length == 1 and fits(layer) and mask is not None and same_for_all


def step_attention(
    query: Float[Array, "B H L K"],
    sources: Sequence[AttendedSource],
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "B H L K"] | None:
    """`attend` of a decode step, in one kernel. None if no kernel fits.

    sources: the cache and the new tokens, or a document.
    """
    scoring = Scoring(scale, soft_cap)
    if len(sources) == 1:
        ((layer, mask, bias),) = sources
        if not fits(layer) or bias is not None or mask is None or mask.shape[-2] != 1:
            return None
        rows = query.swapaxes(1, 2)
        return attend_to_document(rows, layer, mask[:, 0], scoring).swapaxes(1, 2)
    past, (present, mask, bias) = sources[:2]
    if len(sources) > 2 or not fits_cache(query.shape[2], past, bias):
        return None
    tokens = (query[:, :, 0], present.key[:, :, 0], present.value[:, :, 0])
    attended, _ = attend_to_cache(tokens, (0, 0, 0), past, mask, bias, scoring)
    return attended[:, :, None]


def attend_to_cache(
    projections: tuple[Float[Array, "B _ K"], Float[Array, "B _ K"], Float[Array, "B _ K"]],
    first: tuple[int, int, int],
    past: AttendedSource,
    mask: Bool[Array, "#B 1 1"] | None,
    bias: Float[Array, "1 H 1 1"] | None,
    scoring: Scoring,
    x: Float[Array, "B D"] | None = None,
    heads: int | None = None,
) -> tuple[Float[Array, "B H K"], KeyValue]:
    """The attention of one new token per row to a cache and to itself.

    projections: the heads of queries, keys and values. They may be the same array, with the index
    of each one's first head in `first`. mask, bias: of the new token. x: the input of the
    projections, if the kernel applies RMSNorm. heads: H, by default all heads of the first array.

    Returns the weighted values, and the keys and values of the new token.
    """
    layer, past_mask, past_bias = past
    batch = len(layer.key)
    seen = jnp.ones((batch, 1, 1), bool) if mask is None else mask
    arrays = CacheArrays(
        *projections,
        new_mask=jnp.broadcast_to(seen[:, 0, 0], (batch,)),
        past_key=layer.key,
        past_value=layer.value,
        past_mask=jnp.broadcast_to(past_mask[:, 0], (batch, past_mask.shape[-1])),
        past_bias=None if past_bias is None else past_bias[0, :, 0],
        new_bias=None if bias is None else bias[0, :, 0, 0],
        x=x,
    )
    heads = projections[0].shape[-2] if heads is None else heads
    interpret = current_platform() != "gpu"

    @jax.custom_batching.custom_vmap
    def attend(arrays: CacheArrays) -> tuple[Array, Array, Array]:
        with_prompts = _with_axis(arrays, CACHE_AXES)
        results = cache_attention(with_prompts, first, heads, scoring, interpret)
        attended, key, value = (result[0] for result in results)
        return attended, key, value

    @attend.def_vmap
    def of_prompts(size: int, batched: Any, arrays: CacheArrays) -> tuple[Any, Any]:
        if _is_another(CACHE_AXES, batched[0]):
            reference = functools.partial(
                cache_attention_reference, first=first, heads=heads, scoring=scoring
            )
            return _vmapped(reference, batched[0])(arrays), (True, True, True)
        with_prompts = _moved(arrays, CACHE_AXES, batched[0], size)
        results = cache_attention(with_prompts, first, heads, scoring, interpret)
        return results, (True, True, True)

    attended, key, value = attend(arrays)
    return attended, KeyValue(key[:, :, None], value[:, :, None], layer.layout)


def attend_to_document(
    query: Float[Array, "B L H K"],
    document: KeyValue,
    mask: Bool[Array, "#B S"],
    scoring: Scoring,
    x: Float[Array, "B L D"] | None = None,
) -> Float[Array, "B L H K"]:
    """The attention of new tokens to a document.

    x: the input of the queries' projection, if the kernel applies RMSNorm.
    """
    mask = jnp.broadcast_to(mask, (len(query), mask.shape[-1]))
    arrays = DocumentArrays(query, document.key, document.value, mask, x)
    interpret = current_platform() != "gpu"

    @jax.custom_batching.custom_vmap
    def attend(arrays: DocumentArrays) -> Array:
        return document_attention(_with_axis(arrays, DOCUMENT_AXES), scoring, interpret)[0]

    @attend.def_vmap
    def of_prompts(size: int, batched: Any, arrays: DocumentArrays) -> tuple[Array, bool]:
        if _is_another(DOCUMENT_AXES, batched[0]):
            reference = functools.partial(document_attention_reference, scoring=scoring)
            return _vmapped(reference, batched[0])(arrays), True
        with_prompts = _moved(arrays, DOCUMENT_AXES, batched[0], size)
        return document_attention(with_prompts, scoring, interpret), True

    return attend(arrays)


CACHE_AXES = CacheArrays(0, 0, 0, 0, 1, 1, 1, None, None, 0)  # type: ignore[arg-type]
"""The axis of prompts in the inputs of the kernel. None: all prompts have the same array."""
DOCUMENT_AXES = DocumentArrays(0, None, None, None, 0)  # type: ignore[arg-type]


def _flat(axes: Any, batched: Any) -> list[tuple[int | None, bool]]:
    """The axis of each input and whether it is batched, for the inputs that exist."""
    return [(axis, jax.tree.leaves(one) == [True]) for axis, one in zip(axes, batched, strict=True)]


def _is_another(axes: Any, batched: Any) -> bool:
    """Whether prompts differ in an input that the kernel reads once for all of them."""
    return any(axis is None and is_batched for axis, is_batched in _flat(axes, batched))


def _with_axis(arrays: Any, axes: Any) -> Any:
    """The inputs of a single prompt, with an axis of prompts."""
    pairs = zip(arrays, axes, strict=True)
    return type(arrays)(
        *(x if x is None or axis is None else jnp.expand_dims(x, axis) for x, axis in pairs)
    )


def _moved(arrays: Any, axes: Any, batched: Any, size: int) -> Any:
    """The inputs of several prompts, whose axis is the first, with this axis where it belongs."""
    moved = []
    for x, (axis, is_batched) in zip(arrays, _flat(axes, batched), strict=True):
        if x is None or axis is None:
            moved.append(x)
            continue
        rows = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
        moved.append(jnp.moveaxis(rows, 0, axis))
    return type(arrays)(*moved)


def _vmapped(function: Any, batched: Any) -> Any:
    axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
    return jax.vmap(function, in_axes=(axes,))


def cache_attention_reference(
    arrays: CacheArrays, first: tuple[int, int, int], heads: int, scoring: Scoring
) -> tuple[Float[Array, "B H K"], Float[Array, "B G K"], Float[Array, "B G K"]]:
    """`decode_kernels.cache_attention` for a single prompt, as a softmax of all scores."""
    groups = arrays.past_key.shape[1]
    dtype = arrays.past_key.dtype
    counts = (heads, groups, groups)
    query, key, value = (
        _normed(x[:, start : start + count], arrays.x, scoring).astype(dtype)
        for x, start, count in zip(arrays[:3], first, counts, strict=True)
    )
    past = KeyValue(arrays.past_key, arrays.past_value, ATTENDED_FIRST)
    present = KeyValue(key[:, :, None], value[:, :, None], ATTENDED_FIRST)
    query = query[:, :, None]
    past_bias = None if arrays.past_bias is None else arrays.past_bias[:, None]
    new_bias = None if arrays.new_bias is None else arrays.new_bias[:, None, None]
    scale, cap = scoring.scale, scoring.soft_cap
    past_mask = arrays.past_mask[:, None, None]
    new_mask = arrays.new_mask[:, None, None, None]
    scores = [
        adjust_scores(past.scores(query), scale, cap, past_bias, past_mask),
        adjust_scores(present.scores(query), scale, cap, new_bias, new_mask),
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(dtype)
    attended = past.weighted(weights[..., :-1]) + present.weighted(weights[..., -1:])
    return attended[:, :, 0].astype(arrays.query.dtype), key, value


def document_attention_reference(
    arrays: DocumentArrays, scoring: Scoring
) -> Float[Array, "B L H K"]:
    """`decode_kernels.document_attention` for a single prompt, as a softmax of all scores."""
    document = KeyValue(arrays.key, arrays.value, ATTENDED_FIRST)
    query = _normed(arrays.query, arrays.x, scoring).astype(arrays.key.dtype).swapaxes(1, 2)
    seen = arrays.mask[:, None, None]
    scores = adjust_scores(document.scores(query), scoring.scale, scoring.soft_cap, None, seen)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    return document.weighted(weights).swapaxes(1, 2).astype(arrays.query.dtype)


def _normed(
    projected: Float[Array, "*rows R K"], x: Float[Array, "*rows D"] | None, scoring: Scoring
) -> Float[Array, "*rows R K"]:
    """Projections of what RMSNorm makes of x, from those of x, in float32."""
    projected = projected.astype(jnp.float32)
    if x is None or scoring.epsilon is None:
        return projected
    mean = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1)
    return projected * jax.lax.rsqrt(mean + scoring.epsilon)[..., None, None]

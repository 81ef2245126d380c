"""Attention of decoders to many queries without stored scores: training, prefill, scoring.

On a TPU, one call of `attention_kernels.attention` serves all prompts of a document:

- Cross-attention: the queries of all prompts are rows of the kernel, so it reads the keys and
  values of a document once.
- Self-attention, in training: the prompts of a pack are rows of one product. No query sees the keys
  of another prompt.

Where the kernel does not fit, the gradient recomputes the scores.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pid_jax import sharding
from pid_jax.backends.document_attention import (
    BLOCK_SCORES,
    KERNEL_SCORES,
    attended_first,
    fits_kernel,
    key_scores,
    keys_fit,
    keys_of_kernel,
    merged,
    pad_to,
    round_up,
)
from pid_jax.backends.dropout import AttentionDropout
from pid_jax.backends.kernel_shape import LANES, NO_KEY, SUBLANES, KernelShape
from pid_jax.backends.packed_attention import Source, packed_attention
from pid_jax.backends.scores import MASKED_SCORE, adjust_scores
from pid_jax.backends.settings import backend_settings, current_platform

STORED_SCORES = 1 << 27
"""The most scores in a device's memory where there is no kernel (512 MiB in float32). Blocks of
documents have fewer, at some 30 kernels for each block on a GPU."""

PACKED_ROWS = 256
"""The most rows of a pack of prompts, unless a single prompt has more."""


def prompt_attention(
    query: Float[Array, "B H L K"],
    sources: Sequence[Source],
    plain: Callable[..., Float[Array, "B H L K"]],
    scale: float,
    soft_cap: float | None,
    dropout: AttentionDropout | None,
) -> Float[Array, "B H L K"]:
    """`plain(query, sources, dropout)`. Differentiation computes the scores again.

    For calls within `jax.vmap` over prompts: there is no gradient outside of one. Several sources
    have dropout.
    """
    same = dropout is None or dropout.same_for_queries or not dropout.rate
    if len(sources) == 1 and same:
        (source,) = sources
        multipliers = None
        if dropout is not None and dropout.rate:
            multipliers = dropout.multipliers((*query.shape[:3], source.layer.length()))
        return _attend(scale, soft_cap, dropout is None)(query, source, multipliers)
    assert dropout is not None

    @jax.checkpoint
    def recomputed(query: Array, sources: Sequence[Source], key: Any) -> Array:
        return plain(query, sources, dropout._replace(key=key))

    return recomputed(query, sources, dropout.key)


@functools.cache
def _attend(scale: float, soft_cap: float | None, packs: bool) -> Callable[..., Array]:
    """Attention to one source. Vmapped over prompts, it is one call of the kernel.

    packs: True without dropout. Then prompts are packed, unless the scores of documents are many.
    """
    fallback = functools.partial(_packed if packs else _plain, scale=scale, soft_cap=soft_cap)

    @jax.custom_batching.custom_vmap
    def attend(query: Array, source: Source, multipliers: Array | None) -> Array:
        return fallback(query, source, multipliers)

    @attend.def_vmap
    def attend_all(
        prompts: int, batched: Any, query: Array, source: Source, multipliers: Array | None
    ) -> tuple[Array, bool]:
        query_batched, source_batched, multipliers_batched = batched
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)

        def of_prompts(x: Array, is_batched: bool) -> Array:
            return x if is_batched else jnp.broadcast_to(x, (prompts, *x.shape))

        arrays = query, source, multipliers
        query = of_prompts(query, query_batched)
        if multipliers is not None:
            multipliers = of_prompts(multipliers, multipliers_batched)
        attended = None
        scores = query.size // query.shape[-1] * source.layer.length()
        if backend_settings().document_kernel == "pallas":
            # Scores of a pack that are few stay in the memory of the core.
            if not any(jax.tree.leaves(source_batched)) and (scores > BLOCK_SCORES or not packs):
                attended = _cross_attention(query, source, multipliers, scale, soft_cap)
            own = all(jax.tree.leaves(source_batched.layer)) and not source_batched.bias
            if own and not packs:
                if source.mask is not None:
                    source = source._replace(mask=of_prompts(source.mask, source_batched.mask))
                attended = _self_attention(query, source, multipliers, scale, soft_cap)
        if attended is None:
            of_all = jax.checkpoint(jax.vmap(fallback, in_axes=tuple(axes)))
            attended = _in_blocks(of_all, scores, arrays, batched)
        return attended, True

    return attend


def _in_blocks(
    attend: Callable[..., Array], scores: int, arrays: Any, batched: Any
) -> Float[Array, "P B H L K"]:
    """Attention of some documents at a time, so that each device stores at most `STORED_SCORES`.

    scores: of all documents. batched: which arrays have an axis of prompts before that of
    documents.
    """
    batch = arrays[0].shape[-4]
    shares, heads = sharding.shares("batch"), sharding.shares("heads")
    if batch % shares:
        shares = 1
    most = max(STORED_SCORES * heads * batch // scores, 1)
    size = shares * _largest_divisor(batch // shares, most)
    if size == batch:
        return attend(*arrays)
    leaves, tree = jax.tree.flatten(arrays)
    axes = [int(has_prompts) for has_prompts in jax.tree.leaves(batched)]
    split = [x.shape[axis] == batch for x, axis in zip(leaves, axes, strict=True)]

    def blocks(x: Array, axis: int) -> Array:
        # Every block has documents of every share of the batch: nothing moves between devices.
        shape = (*x.shape[:axis], size, batch // size, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis + 1, 0)

    def of_block(parts: Sequence[Array]) -> Array:
        rest = iter(parts)
        whole = [next(rest) if one else x for x, one in zip(leaves, split, strict=True)]
        return attend(*jax.tree.unflatten(tree, whole))

    parts = [blocks(x, axis) for x, axis, one in zip(leaves, axes, split, strict=True) if one]
    attended = jnp.moveaxis(jax.lax.map(of_block, parts), 0, 2)
    return attended.reshape(attended.shape[0], batch, *attended.shape[3:])


def _plain(
    query: Float[Array, "B H L K"],
    source: Source,
    multipliers: Float[Array, "B H 1 S"] | None,
    *,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "B H L K"]:
    mask = None if source.mask is None else source.mask[:, None]
    scores = adjust_scores(source.layer.scores(query), scale, soft_cap, source.bias, mask)
    weights = jax.nn.softmax(scores, axis=-1)
    if multipliers is not None:
        weights = weights * multipliers
    return source.layer.weighted(weights.astype(query.dtype))


def _packed(
    query: Float[Array, "B H L K"], source: Source, multipliers: None, **scoring: Any
) -> Float[Array, "B H L K"]:
    return packed_attention(query, [source], **scoring)


def _cross_attention(
    query: Float[Array, "P B H L K"],
    source: Source,
    multipliers: Float[Array, "P B H 1 S"] | None,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "P B H L K"] | None:
    """Attention of all prompts to their document. None if the kernel does not fit."""
    from pid_jax.backends import attention_kernels

    prompts, batch, heads, length, width = query.shape
    rows, keys = round_up(length, SUBLANES), round_up(source.layer.length(), LANES)
    at_once = _largest_divisor(prompts, KERNEL_SCORES // (rows * keys))
    if source.mask is None or source.mask.shape[1] != 1 or source.bias is not None:
        return None
    if not at_once or not fits_kernel(query[0]) or not keys_fit(keys, query):
        return None
    shape = KernelShape(
        width, rows, at_once, scale, soft_cap, interpret=current_platform() != "tpu"
    )
    if multipliers is not None:
        multipliers = pad_to(multipliers[:, :, :, 0], keys, axis=-1)
    out = attention_kernels.attention(
        shape,
        pad_to(jax.vmap(merged)(query), rows),
        *keys_of_kernel(source.layer, heads, keys),
        jnp.broadcast_to(key_scores(source.mask[:, 0], keys), (batch, 1, keys)),
        multipliers,
        None,
    )
    return out[:, :, :length].reshape(prompts, batch, length, heads, width).swapaxes(2, 3)


def _self_attention(
    query: Float[Array, "P B H L K"],
    source: Source,
    multipliers: Float[Array, "P B H 1 L"] | None,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "P B H L K"] | None:
    """Attention of each prompt to its own tokens. None if the kernel does not fit."""
    from pid_jax.backends import attention_kernels

    prompts, batch, heads, length, width = query.shape
    rows = round_up(length, SUBLANES)
    # On one device the order of prompts and documents does not matter, and nothing is transposed.
    # On a mesh the packs of a device have its own documents.
    on_mesh = sharding.current_mesh() is not None
    of_device = prompts * batch // sharding.shares("batch")
    pack = _largest_divisor(of_device, max(PACKED_ROWS // rows, 1))
    packs, queries = prompts * batch // pack, pack * rows
    key, value = jax.vmap(attended_first)(source.layer)
    if source.mask is None or key.shape[3] != length or queries * queries > KERNEL_SCORES:
        return None
    if not fits_kernel(query[0]) or (source.bias is not None and source.bias.shape[0] != 1):
        return None
    shape = KernelShape(width, queries, 1, scale, soft_cap, interpret=current_platform() != "tpu")

    def packed(x: Float[Array, "P B G L K"]) -> Float[Array, "packs queries W"]:
        x = jax.vmap(merged)(jnp.repeat(x, heads // x.shape[2], axis=2))
        return by_pack(pad_to(x, rows)).reshape(packs, queries, -1)

    def by_pack(x: Array) -> Array:
        return x.swapaxes(0, 1) if on_mesh else x

    mask = by_pack(jnp.broadcast_to(source.mask, (prompts, batch, length, length)))
    margin = rows - length
    scores = jnp.pad(
        jnp.where(mask, 0.0, MASKED_SCORE),
        ((0, 0), (0, 0), (0, margin), (0, margin)),
        constant_values=NO_KEY,
    )
    scores = _block_diagonal(scores.reshape(packs, pack, rows, rows), NO_KEY)
    if multipliers is not None:
        multipliers = by_pack(pad_to(multipliers[:, :, :, 0], rows, axis=-1))
        multipliers = multipliers.reshape(packs, pack, heads, rows).swapaxes(1, 2)
        multipliers = multipliers.reshape(1, packs, heads, queries)
    bias = None
    if source.bias is not None:
        # The scores of other prompts are masked, so that any bias is correct for them.
        bias = jnp.pad(source.bias.astype(jnp.float32), ((0, 0), (0, 0), (0, margin), (0, margin)))
        bias = jnp.tile(bias, (1, 1, pack, pack))
    out = attention_kernels.attention(
        shape, packed(query)[None], packed(key), packed(value), scores, multipliers, bias
    )
    first, second = (batch, prompts) if on_mesh else (prompts, batch)
    out = by_pack(out.reshape(first, second, rows, heads, width))[:, :, :length]
    return out.swapaxes(2, 3)


def _block_diagonal(
    blocks: Float[Array, "B pack rows keys"], elsewhere: float
) -> Float[Array, "B pack*rows pack*keys"]:
    """The blocks on the diagonal of a matrix."""
    batch, pack, rows, keys = blocks.shape
    same = jnp.eye(pack, dtype=bool)[:, None, :, None]
    whole = jnp.where(same, blocks[:, :, :, None], elsewhere)
    return whole.reshape(batch, pack * rows, pack * keys)


def _largest_divisor(x: int, most: int) -> int:
    """The largest divisor of x that is at most `most`. 0 if there is none."""
    return max((size for size in range(1, min(most, x) + 1) if x % size == 0), default=0)

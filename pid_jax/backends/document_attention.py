"""Self-attention of encoders without stored scores, in training and inference.

A TPU computes it with `attention_kernels.attention`, a GPU with cuDNN, a CPU with
`blockwise_attention`. Where a kernel does not fit, `recomputed_attention` computes one block of
queries at a time. It serves every dtype, width and mask. `blockwise_attention.full_attention` is
the reference.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax import sharding
from pid_jax.backends.blockwise_attention import blockwise_attention
from pid_jax.backends.dropout import AttentionDropout
from pid_jax.backends.kernel_shape import LANES, NO_KEY, KernelShape
from pid_jax.backends.layouts import KeyValue
from pid_jax.backends.scores import MASKED_SCORE, adjust_scores, is_within
from pid_jax.backends.settings import backend_settings, current_platform

KERNEL_SCORES = 1 << 18
"""The most scores of a head in a block of a TPU's kernel (1 MiB). In float32 half as many."""

KERNEL_BYTES = 1 << 19
"""The largest block of keys of a TPU's kernel. It has at least 128 numbers of each key."""

BLOCK_SCORES = 1 << 24
"""The most scores of a block of `recomputed_attention` (64 MiB in float32)."""

MASK_WIDTH = 8
"""How many numbers `_with_cudnn` adds to each key. cuDNN wants widths that 8 divides."""

CUDNN_WIDTH = 128
"""The widest head, with `MASK_WIDTH`, that cuDNN serves on every card."""


CUDNN_BIASES = 1 << 28
"""The most biases that cuDNN reads (512 MiB in bfloat16): H S S."""


def document_attention(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    distance_bias: Float[Array, "H distances"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
    reach: tuple[int, int] | None = None,
    dropout: AttentionDropout | None = None,
) -> Float[Array, "B H S K"]:
    """Self-attention of an encoder. Stores no scores, except in the training of a CPU.

    For arguments, see `blockwise_attention`. dropout: None without gradients. On accelerators, the
    result has gradients without dropout, too.
    """
    kernel = backend_settings().document_kernel
    if kernel is None:
        if dropout is not None:
            raise ValueError("a CPU trains with full scores: use pid_jax.models.attention.attend")
        return blockwise_attention(
            query, layer, mask, distance_bias, scale=scale, soft_cap=soft_cap, reach=reach
        )
    arguments = (query, layer, mask, distance_bias, scale, soft_cap, reach, dropout)
    same = dropout is None or not dropout.rate or dropout.same_for_queries
    if kernel == "pallas" and same:
        rows = _rows_of_block(round_up(query.shape[2], LANES), query)
        if rows and fits_kernel(query):
            return _with_pallas(*arguments, rows=rows)
    if kernel == "cudnn" and same and _fits_cudnn(query, layer, soft_cap, dropout):
        return _with_cudnn(query, layer, mask, distance_bias, scale, reach, dropout)
    return recomputed_attention(*arguments)


def recomputed_attention(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    distance_bias: Float[Array, "H distances"] | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    reach: tuple[int, int] | None = None,
    dropout: AttentionDropout | None = None,
) -> Float[Array, "B H S K"]:
    """`document_attention` in blocks of queries. Differentiation computes their scores again."""
    batch, heads, length, width = query.shape
    rows = max(BLOCK_SCORES // (batch * heads * length) // 16 * 16, 16)
    rows = min(rows, length)
    blocks = -(-length // rows)
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, blocks * rows - length), (0, 0)))
    keys = length if reach is None else min(rows + sum(reach), length)
    remains: AttentionDropout | None = dropout
    if dropout is not None and dropout.rate and dropout.same_for_queries:
        # The same for all blocks: an operation on the values.
        multipliers = dropout.multipliers((batch, heads, length, length))
        layer = _with_multipliers(layer, multipliers, query.dtype)
        remains = None

    @jax.checkpoint
    def block(index: Int[Array, ""]) -> Float[Array, "B H rows K"]:
        start = index * rows
        first = jnp.clip(start - (reach[0] if reach else 0), 0, length - keys)
        part = jax.lax.dynamic_slice_in_dim(padded, start, rows, axis=2)
        window = layer.window(first, keys)
        seen = jax.lax.dynamic_slice_in_dim(mask, first, keys, axis=1)[:, None, None]
        if reach is not None:
            query_index, key_index = start + jnp.arange(rows), first + jnp.arange(keys)
            seen = seen & is_within(reach, key_index - query_index[:, None])
        bias = None
        if distance_bias is not None:
            # Queries that pad the last block have distances outside the table.
            table = jnp.pad(distance_bias, ((0, 0), (rows, 1)))
            offset = length - 1 + first - start
            distances = jax.lax.dynamic_slice_in_dim(table, offset, rows + keys, axis=1)
            bias = by_distance(distances, rows)[None]
        scores = adjust_scores(window.scores(part), scale, soft_cap, bias, seen)
        weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
        if remains is not None and remains.rate:
            key = jax.random.fold_in(remains.key, index)
            weights = remains._replace(key=key).apply(weights)
        return window.weighted(weights)

    attended = jax.lax.map(block, jnp.arange(blocks))
    whole = jnp.moveaxis(attended, 0, 2).reshape(batch, heads, blocks * rows, width)
    return whole[:, :, :length]


def by_distance(biases: Float[Array, "H span"], rows: int) -> Float[Array, "H {rows} span-{rows}"]:
    """The bias of each query and key: that of query i and key j is entry rows + j - i.

    Neither this nor its gradient has a gather or a scatter.
    """
    heads, span = biases.shape
    # Each row is one shorter than a repetition of the biases, so it starts one later in it.
    repeated = jnp.tile(biases, (1, rows))[:, rows:]
    return repeated.reshape(heads, rows, span - 1)[:, :, : span - rows]


def _rows_of_block(length: int, query: Array) -> int:
    """The rows of a block of self-attention, a divisor of the length. 0 if there is none."""
    if not keys_fit(length, query):
        return 0
    most = KERNEL_SCORES * 2 // query.dtype.itemsize
    sizes = range(LANES, length + 1, LANES)
    fitting = [size for size in sizes if length % size == 0 and size * length <= most]
    return max(fitting, default=0)


def keys_fit(length: int, query: Float[Array, "*batch L K"]) -> bool:
    """Whether so many keys fit in the memory of a TPU's kernel."""
    return length * max(query.shape[-1], LANES) * query.dtype.itemsize <= KERNEL_BYTES


def fits_kernel(query: Float[Array, "B H L K"]) -> bool:
    """Whether the documents and the heads of each device make whole blocks of a TPU's kernel."""
    (batch, heads, _, width), parts = query.shape, sharding.shares("heads")
    if batch % sharding.shares("batch") or heads % parts:
        return False
    return (heads // parts * width) % LANES == 0 and (LANES % width == 0 or width % LANES == 0)


def _with_pallas(
    query: Array,
    layer: KeyValue,
    mask: Array,
    distance_bias: Array | None,
    scale: float,
    soft_cap: float | None,
    reach: tuple[int, int] | None,
    dropout: AttentionDropout | None,
    rows: int,
) -> Float[Array, "B H S K"]:
    # Pallas takes 40 ms to import.
    from pid_jax.backends import attention_kernels

    batch, heads, length, width = query.shape
    padded = round_up(length, LANES)
    shape = KernelShape(
        width,
        rows,
        scale=scale,
        soft_cap=soft_cap,
        reach=reach,
        interpret=current_platform() != "tpu",
    )
    multipliers = None
    if dropout is not None and dropout.rate:
        multipliers = dropout.multipliers((batch, heads, length, length))[None, :, :, 0]
    bias = None
    if distance_bias is not None:
        table = distance_bias.astype(jnp.float32)
        bias = attention_kernels.bias_of_blocks(table, padded, rows)
    out = attention_kernels.attention(
        shape,
        pad_to(merged(query), padded)[None],
        *keys_of_kernel(layer, heads, padded),
        key_scores(mask, padded),
        None if multipliers is None else pad_to(multipliers, padded, axis=-1),
        bias,
    )
    return _split(out[0, :, :length], heads)


def keys_of_kernel(layer: KeyValue, heads: int, length: int) -> tuple[Array, Array]:
    """`[B, S, W]`: each key/value head once for each query head that reads it."""
    arrays = []
    for array in attended_first(layer):
        repeated = jnp.repeat(array, heads // array.shape[1], axis=1)
        arrays.append(pad_to(merged(repeated), length))
    return arrays[0], arrays[1]


def attended_first(layer: KeyValue) -> tuple[Array, Array]:
    """Keys and values as `[B, G, S, K]`."""

    def arranged(x: Array) -> Array:
        split, axes = layer.layout.with_axes(x)
        return jnp.einsum(f"b{axes}->bgsk", split)

    return arranged(layer.key), arranged(layer.value)


def _fits_cudnn(
    query: Array, layer: KeyValue, soft_cap: float | None, dropout: AttentionDropout | None
) -> bool:
    heads, length, width = query.shape[1:]
    return (
        query.dtype == jnp.bfloat16
        and soft_cap is None
        and length % 2 == 0
        and heads * length * length <= CUDNN_BIASES
        and width % 8 == 0
        and width + MASK_WIDTH <= CUDNN_WIDTH
        and (dropout is None or not dropout.rate or layer.groups() == heads)
    )


def _with_cudnn(
    query: Array,
    layer: KeyValue,
    mask: Array,
    distance_bias: Array | None,
    scale: float,
    reach: tuple[int, int] | None,
    dropout: AttentionDropout | None,
) -> Float[Array, "B H S K"]:
    """Attention of cuDNN, which takes a bias that documents share, and lengths instead of masks.

    A mask need not be that of a length. So each key has a further number, which is the score of
    `scores.MASKED_SCORE` where the mask is False, and each query a one to multiply it by.
    """
    batch, heads, length, width = query.shape
    if dropout is not None and dropout.rate:
        multipliers = dropout.multipliers((batch, heads, length, length))
        layer = _with_multipliers(layer, multipliers, query.dtype)
    key, value = attended_first(layer)
    bias = None
    if distance_bias is not None:
        bias = by_distance(jnp.pad(distance_bias, ((0, 0), (1, 0))), length)[None]
        bias = bias.astype(query.dtype)
    if reach is not None:
        distance = jnp.arange(length)[None] - jnp.arange(length)[:, None]
        unseen = jnp.where(is_within(reach, distance), 0, MASKED_SCORE).astype(query.dtype)
        bias = unseen[None, None] if bias is None else bias + unseen
    score = jnp.where(mask, 0, MASKED_SCORE / scale).astype(query.dtype)[:, None, :, None]

    def widened(x: Array, number: Array | float) -> Array:
        further = jnp.broadcast_to(jnp.asarray(number, x.dtype), (*x.shape[:-1], 1))
        rest = jnp.zeros((*x.shape[:-1], MASK_WIDTH - 1), x.dtype)
        return jnp.concatenate([x, further, rest], axis=-1).swapaxes(1, 2)

    attended = jax.nn.dot_product_attention(
        widened(query, 1.0),
        widened(key, score),
        widened(value, 0.0),
        bias=bias,
        scale=scale,
        implementation="cudnn" if current_platform() == "gpu" else "xla",
    )
    return attended[..., :width].swapaxes(1, 2)


def _with_multipliers(layer: KeyValue, multipliers: Float[Array, "B H 1 S"], dtype: Any) -> Any:
    """Keys and values with each query head's own values, multiplied."""
    key, value = attended_first(layer)
    heads = multipliers.shape[1]
    key, value = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in (key, value))
    value = (value * multipliers.swapaxes(-2, -1)).astype(dtype)
    layout = layer.layout
    return KeyValue(layout.from_heads(key), layout.from_heads(value), layout)


def key_scores(mask: Bool[Array, "B S"], length: int) -> Float[Array, "B 1 length"]:
    """The `seen` of `attention_kernels.attention`."""
    seen = jnp.where(mask, 0.0, MASKED_SCORE)
    return jnp.pad(seen, ((0, 0), (0, length - seen.shape[1])), constant_values=NO_KEY)[:, None]


def merged(x: Float[Array, "B H L K"]) -> Float[Array, "B L W"]:
    batch, heads, length, width = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, heads * width)


def _split(x: Float[Array, "B L W"], heads: int) -> Float[Array, "B H L K"]:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def pad_to(x: Array, length: int, axis: int = -2) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple

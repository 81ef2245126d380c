"""Pallas kernels for TPUs: attention that stores no scores, and its gradient.

A block of queries sees all keys at once, so the kernels need no running softmax. The backward
kernel recomputes the scores of a block, so nothing but the inputs is stored. Arrays have the heads
in their last axis, as projections return them. A block has 128 numbers of it: one head or several.
To multiply one of several heads, the kernels set the numbers of the others to zero. This costs no
time, because the matrix unit multiplies 128 numbers anyway.

Letters beside those of `pid_jax.models.protocol`:

    W        heads times their width K
    rows     the queries of a block: those of some prompts, or some of one prompt
    blocks   blocks of a document's queries
    span     keys + the rows of a block: the distances that occur in a block, padded
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pid_jax import sharding
from pid_jax.backends.kernel_shape import SUBLANES, KernelShape
from pid_jax.backends.matmul import precision_of
from pid_jax.backends.scores import MASKED_SCORE, is_within

STORED_BIASES = 1 << 20
"""Up to so many biases of the heads of a block are in memory while the kernel runs through the
documents (4 MiB). More than these are made from the distances for each document."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(
    shape: KernelShape,
    query: Float[Array, "P B L W"],
    key: Float[Array, "B S W"],
    value: Float[Array, "B S W"],
    seen: Float[Array, "B 1 S"] | Float[Array, "B L S"],
    multipliers: Float[Array, "P B H S"] | None,
    bias: Float[Array, "blocks H 1 span"] | Float[Array, "1 H L S"] | None,
) -> Float[Array, "P B L W"]:
    """softmax(scores) V.

    seen: 0 for a key that queries see, otherwise its score. multipliers: of the weights of each
    key, after the softmax. bias: of the distances in each block of rows, see `bias_of_blocks`, or,
    if there is one prompt and one block of it, of each query and key.
    """
    (out,) = _call(shape, _forward, query, key, value, seen, multipliers, bias)
    return out


def _attention_forward(shape: KernelShape, *arrays: Any) -> tuple[Array, Any]:
    return attention(shape, *arrays), arrays


def _attention_backward(shape: KernelShape, arrays: Any, gradient: Array) -> tuple[Any, ...]:
    query, key, value, seen, multipliers, bias = arrays
    dquery, dkey, dvalue, *dbias = _call(
        shape, _backward, query, key, value, seen, multipliers, bias, gradient
    )
    # The multipliers are dropout's, which has no gradient.
    nothing = None if multipliers is None else jnp.zeros_like(multipliers)
    return dquery, dkey, dvalue, jnp.zeros_like(seen), nothing, dbias[0] if dbias else None


attention.defvjp(_attention_forward, _attention_backward)


def bias_of_blocks(
    distance_bias: Float[Array, "H distances"], length: int, rows: int
) -> Float[Array, "blocks H 1 span"]:
    """The biases that occur in each block of rows, in order of distance.

    The entry at `rows` is that of the block's first query and the first key. length: S, padded.
    """
    heads, distances = distance_bias.shape
    before = length - (distances + 1) // 2 + 1
    padded = jnp.pad(distance_bias, ((0, 0), (before, 2 * length - before - distances)))
    starts = range(length - rows, -1, -rows)
    blocks = [padded[:, start : start + length + rows] for start in starts]
    return jnp.stack(blocks).reshape(len(blocks), heads, 1, length + rows)


def _call(shape: KernelShape, kernel: Any, *arrays: Any) -> Any:
    """`_on_device` with the documents and heads of each device of the current mesh."""
    mesh = sharding.current_mesh()
    if mesh is None:
        return _on_device(shape, kernel, *arrays)
    documents, heads = sharding.mesh_axes("batch"), sharding.mesh_axes("heads")
    rows = PartitionSpec(None, documents, None, heads)
    keys = PartitionSpec(documents, None, heads)
    of_bias = PartitionSpec(None, heads)
    of_arrays = [
        *(rows, keys, keys, PartitionSpec(documents), PartitionSpec(None, documents, heads)),
        *(of_bias, rows),
    ]
    out_specs = [rows]
    if len(arrays) == len(of_arrays):  # the last is the gradient of the result
        out_specs = [rows, keys, keys] if arrays[5] is None else [rows, keys, keys, of_bias]

    def of_shard(*arrays: Any) -> Any:
        outputs = list(_on_device(shape, kernel, *arrays))
        if len(outputs) == 4:  # the gradient of the bias, which all documents share
            outputs[3] = jax.lax.psum(outputs[3], documents)
        return outputs

    # Pallas says nothing of what varies over the mesh, which the check needs.
    return jax.shard_map(
        of_shard,
        mesh=mesh,
        in_specs=tuple(of_arrays[: len(arrays)]),
        out_specs=out_specs,
        check_vma=False,
    )(*arrays)


def _on_device(
    shape: KernelShape,
    kernel: Any,
    query: Array,
    key: Array,
    value: Array,
    seen: Array,
    multipliers: Array | None,
    bias: Array | None,
    gradient: Array | None = None,
) -> Any:
    """Runs a kernel for each block of heads, each document, each block of rows, in this order."""
    prompts, batch, queries, width = query.shape
    length = key.shape[1]
    blocks = prompts * queries // shape.rows
    of_rows = pl.BlockSpec(
        (shape.prompts, 1, shape.queries, shape.lanes),
        lambda h, b, i: (i, b, 0, h) if prompts > shape.prompts else (0, b, i, h),
    )
    of_keys = pl.BlockSpec((1, length, shape.lanes), lambda h, b, i: (b, 0, h))
    inputs = {
        "query": (query, of_rows),
        "key": (key, of_keys),
        "value": (value, of_keys),
        "seen": (seen, _spec_of_seen(shape, seen)),
    }
    if multipliers is not None:
        by_block = multipliers.reshape(-1, shape.prompts, *multipliers.shape[1:])
        spec = pl.BlockSpec(
            (1, 1, shape.heads, shape.prompts, length),
            lambda h, b, i: (i if prompts > shape.prompts else 0, b, h, 0, 0),
        )
        by_block = by_block.transpose(0, 2, 3, 1, 4)
        inputs["multipliers"] = (by_block, spec)
    if bias is not None:
        spec = pl.BlockSpec((1, shape.heads, *bias.shape[2:]), lambda h, b, i: (i, h, 0, 0))
        inputs["bias"] = (bias, spec)
    outputs = {"out": (jax.ShapeDtypeStruct(query.shape, query.dtype), of_rows)}
    scratch: dict[str, Any] = {}
    stored = pltpu.VMEM((blocks, shape.heads, shape.rows, length), jnp.float32)
    stores_bias = (
        bias is not None and bias.shape[2] == 1 and math.prod(stored.shape) <= STORED_BIASES
    )
    if stores_bias:
        scratch["stored_bias"] = stored
    products = 2
    if gradient is not None:
        products = 5
        inputs["gradient"] = (gradient, of_rows)
        outputs = {
            "dquery": (jax.ShapeDtypeStruct(query.shape, query.dtype), of_rows),
            "dkey": (jax.ShapeDtypeStruct(key.shape, key.dtype), of_keys),
            "dvalue": (jax.ShapeDtypeStruct(value.shape, value.dtype), of_keys),
        }
        for name in ("key_sum", "value_sum"):
            scratch[name] = pltpu.VMEM((length, shape.lanes), jnp.float32)
        if stores_bias:
            scratch["bias_sum"] = stored
        if bias is not None:
            spec = pl.BlockSpec(
                (blocks, shape.heads, *bias.shape[2:]), lambda h, b, i: (0, h, 0, 0)
            )
            outputs["dbias"] = (jax.ShapeDtypeStruct(bias.shape, jnp.float32), spec)
    names = [*inputs, *outputs, *scratch]

    def body(*refs: Any) -> None:
        kernel(shape, dict(zip(names, refs, strict=True)))

    scores = query.size * length // shape.width
    return pl.pallas_call(
        body,
        out_shape=[out for out, _ in outputs.values()],
        grid=(width // shape.lanes, batch, blocks),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for _, spec in outputs.values()],
        scratch_shapes=list(scratch.values()),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * shape.width,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x, _ in inputs.values()),
        ),
        name="attention" if gradient is None else "attention_gradient",
        interpret=shape.interpret,
    )(*(array for array, _ in inputs.values()))


def _spec_of_seen(shape: KernelShape, seen: Array) -> pl.BlockSpec:
    if seen.shape[1] == 1:
        return pl.BlockSpec((1, 1, seen.shape[2]), lambda h, b, i: (b, 0, 0))
    return pl.BlockSpec((1, shape.queries, seen.shape[2]), lambda h, b, i: (b, i, 0))


def _forward(shape: KernelShape, refs: dict[str, Any]) -> None:
    query, key, value = _rows(refs["query"]), refs["key"][0], refs["value"][0]
    out = jnp.zeros((shape.rows, shape.lanes), jnp.float32)
    for head in range(shape.heads):
        scores, _ = _scores(shape, refs, _only(shape, query, head), key, head)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        weights = _times(weights, _multipliers(shape, refs, head))
        attended = _dot(weights.astype(value.dtype), value, (1, 0)) / total
        out = attended if head == 0 else jnp.where(_lanes_of(shape, head), attended, out)
    _set_rows(refs["out"], out)


def _backward(shape: KernelShape, refs: dict[str, Any]) -> None:
    query, key, value = _rows(refs["query"]), refs["key"][0], refs["value"][0]
    gradient = _rows(refs["gradient"])
    block = pl.program_id(2)
    zeros = jnp.zeros((key.shape[0], shape.lanes), jnp.float32)
    dquery, dkey, dvalue = jnp.zeros((shape.rows, shape.lanes), jnp.float32), zeros, zeros
    for head in range(shape.heads):
        own_query, own_gradient = _only(shape, query, head), _only(shape, gradient, head)
        scores, slope = _scores(shape, refs, own_query, key, head)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = weights * (1 / weights.sum(axis=-1, keepdims=True))
        multipliers = _multipliers(shape, refs, head)
        dweights = _times(_dot(own_gradient, value, (1, 1)), multipliers)
        dscores = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True))
        dvalue += _dot(_times(weights, multipliers).astype(value.dtype), own_gradient, (0, 0))
        if "bias" in refs:
            _add_bias_gradient(refs, block, head, dscores)
        if slope is not None:
            dscores = dscores * slope
        products = dscores.astype(key.dtype)
        dkey += _dot(products, own_query, (0, 0))
        part = _dot(products, key, (1, 0))
        dquery = part if head == 0 else jnp.where(_lanes_of(shape, head), part, dquery)
    _set_rows(refs["dquery"], dquery * shape.scale)
    _add(refs["key_sum"], block == 0, dkey)
    _add(refs["value_sum"], block == 0, dvalue)

    @pl.when(block == pl.num_programs(2) - 1)
    def _() -> None:
        refs["dkey"][0] = (refs["key_sum"][...] * shape.scale).astype(key.dtype)
        refs["dvalue"][0] = refs["value_sum"][...].astype(value.dtype)


def _rows(ref: Any) -> Float[Array, "rows lanes"]:
    """The queries of all prompts of a block, or what has their shape."""
    if ref.shape[0] == 1:
        return ref[0, 0]
    x = ref[:, 0]
    # Numbers of 16 bits share a register with those of the next row. Without the cast, rows would
    # have to be a multiple of 16.
    return x.astype(jnp.float32).reshape(-1, x.shape[-1]).astype(x.dtype)


def _set_rows(ref: Any, x: Float[Array, "rows lanes"]) -> None:
    if ref.shape[0] == 1:
        ref[0, 0] = x.astype(ref.dtype)
    else:
        ref[:, 0] = x.reshape(ref.shape[0], *ref.shape[2:]).astype(ref.dtype)


def _scores(
    shape: KernelShape, refs: dict[str, Any], query: Array, key: Array, head: int
) -> tuple[Float[Array, "rows S"], Float[Array, "rows S"] | None]:
    """The scores of a block, and the derivative of the soft cap."""
    scores = _dot(query, key, (1, 1))
    slope = None
    if shape.scale != 1.0:
        scores = scores * shape.scale
    if shape.soft_cap is not None:
        capped = jnp.tanh(scores / shape.soft_cap)
        scores, slope = capped * shape.soft_cap, 1 - capped * capped
    if "bias" in refs:
        scores = scores + _bias(refs, shape.rows, head)
    seen = refs["seen"][0]
    scores = jnp.where(seen == 0, scores, seen)
    if shape.reach is not None:
        key_index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        query_index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        query_index = query_index + pl.program_id(2) * shape.rows
        visible = is_within(shape.reach, key_index - query_index)
        scores = jnp.where(visible, scores, jnp.minimum(seen, MASKED_SCORE))
    return scores, slope


def _bias(refs: dict[str, Any], rows: int, head: int) -> Float[Array, "rows S"]:
    if refs["bias"].shape[2] > 1:
        return refs["bias"][0, head]
    if "stored_bias" not in refs:
        return _by_distance(refs["bias"][0, head], rows)
    stored = refs["stored_bias"].at[pl.program_id(2), head]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        stored[...] = _by_distance(refs["bias"][0, head], rows)

    return stored[...]


def _by_distance(biases: Float[Array, "1 span"], rows: int) -> Float[Array, "rows S"]:
    """The bias of each query and key of a block: each row is the one before, shifted by one."""
    first = jnp.broadcast_to(biases, (SUBLANES, biases.shape[-1]))
    first = _shifted_by_row(first, 1)
    parts = [pltpu.roll(first, start, 1)[:, rows:] for start in range(0, rows, SUBLANES)]
    return jnp.concatenate(parts, axis=0)


def _shifted_by_row(x: Float[Array, "SUBLANES span"], sign: int) -> Float[Array, "SUBLANES span"]:
    """Row i shifted by i. TPU v4 has no instruction for this."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for step in (1, 2, 4):
        x = jnp.where((row & step) != 0, pltpu.roll(x, sign * step % x.shape[1], 1), x)
    return x


def _add_bias_gradient(
    refs: dict[str, Any], block: Array, head: int, dscores: Float[Array, "rows S"]
) -> None:
    """Adds the gradient of a block to that of the biases."""
    document, gradient = pl.program_id(1), refs["dbias"].at[block, head]
    if refs["bias"].shape[2] > 1:
        _add(gradient, document == 0, dscores)
        return
    if "bias_sum" not in refs:
        _add(gradient, document == 0, _sum_of_distances(dscores))
        return
    total = refs["bias_sum"].at[block, head]
    _add(total, document == 0, dscores)

    @pl.when(document == pl.num_programs(1) - 1)
    def _() -> None:
        gradient[...] = _sum_of_distances(total[...])


def _sum_of_distances(x: Float[Array, "rows S"]) -> Float[Array, "1 span"]:
    """The sum of what belongs to a distance. The transpose of `_by_distance`."""
    rows, span = x.shape[0], sum(x.shape)
    before = jnp.zeros((SUBLANES, rows), jnp.float32)
    total = jnp.zeros((SUBLANES, span), jnp.float32)
    for start in range(0, rows, SUBLANES):
        part = jnp.concatenate([before, x[start : start + SUBLANES]], axis=1)
        total += pltpu.roll(part, (span - start) % span, 1)
    total = _shifted_by_row(total, -1)
    return total.sum(axis=0, keepdims=True)


def _add(ref: Any, is_first: Array, x: Array) -> None:
    @pl.when(is_first)
    def _() -> None:
        ref[...] = x

    @pl.when(~is_first)
    def _() -> None:
        ref[...] += x


def _multipliers(
    shape: KernelShape, refs: dict[str, Any], head: int
) -> Float[Array, "prompts 1 S"] | None:
    return refs["multipliers"][0, 0, head][:, None] if "multipliers" in refs else None


def _times(
    weights: Float[Array, "rows S"], multipliers: Float[Array, "prompts 1 S"] | None
) -> Float[Array, "rows S"]:
    if multipliers is None:
        return weights
    by_prompt = weights.reshape(len(multipliers), -1, weights.shape[-1])
    return (by_prompt * multipliers).reshape(weights.shape)


def _lanes_of(shape: KernelShape, head: int) -> Array:
    """True for the numbers of a head."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, shape.lanes), 1)
    return (lane >= head * shape.width) & (lane < (head + 1) * shape.width)


def _only(shape: KernelShape, x: Float[Array, "rows lanes"], head: int) -> Array:
    """x with zeros in place of other heads."""
    if shape.heads == 1:
        return x
    return jnp.where(_lanes_of(shape, head), x, jnp.zeros((), x.dtype))


def _dot(x: Array, y: Array, axes: tuple[int, int]) -> Array:
    """The product over an axis of each, in float32."""
    return jax.lax.dot_general(
        x,
        y,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision_of(x.dtype),
        preferred_element_type=jnp.float32,
    )

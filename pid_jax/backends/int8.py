"""Parameters in 8 bits for decoding: integers beside one float32 scale per output channel.

A decode step reads every kernel for few rows, so its time and memory follow the bytes of the
kernels. Products have their operands and sums in floating point: only the weights are rounded
(weight-only quantization, as W8A16 in Frantar et al., arXiv 2210.17323, section 2, without GPTQ).
The largest weight of a channel has the integer 127 or -127, so a weight changes by at most half of
its channel's scale.

Integers cannot have the scale of a norm as a factor, so kernels are joined (`projections.py`)
before they are rounded.

Letters beside those of `pid_jax.models.protocol`: I input features, O output features.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int8

from pid_jax.backends.matmul import precision_of
from pid_jax.backends.projections import array_module
from pid_jax.backends.settings import backend_settings

KERNEL_SCALE = "kernel_scale"
"""The name of the scales `Float["O"]` beside a `kernel` of integers `Int8["I O"]`."""
EMBEDDING_SCALE = "embedding_scale"
"""The name of the scales `Float["V"]` beside an `embedding` of integers `Int8["V D"]`."""

_LARGEST = 127
_SMALLEST_SCALE = np.finfo(np.float32).tiny


def quantize(params: Mapping[str, Any], dtype: DTypeLike | None = None) -> dict[str, Any]:
    """Parameters with all kernels and tables of token embeddings in 8 bits.

    dtype: of biases, norms, positions and relative position biases. None leaves them as they are.
    Arrays stay on their devices, with their sharding. Arrays of NumPy stay on the host.
    """
    changed = _with_int8_kernels(params, dtype)
    for name, module in changed.items():
        # The tables of positions and of relative position biases are in the encoder and decoder.
        if isinstance(module, Mapping) and "embedding" in module:
            embedding, scale = _quantized(params[name]["embedding"], input_axis=1)
            changed[name] = {**module, "embedding": embedding, EMBEDDING_SCALE: scale}
    return changed


def _with_int8_kernels(params: Mapping[str, Any], dtype: DTypeLike | None) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, child in params.items():
        if isinstance(child, Mapping):
            changed[name] = _with_int8_kernels(child, dtype)
        elif name != "kernel":
            changed[name] = child if dtype is None else child.astype(jnp.dtype(dtype))
    if "kernel" in params:
        changed["kernel"], changed[KERNEL_SCALE] = _quantized(params["kernel"], input_axis=0)
    return changed


def is_quantized(params: Mapping[str, Any]) -> bool:
    """Whether the parameters are those of `quantize`."""
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


def _quantized(
    weights: Float[Array | np.ndarray, "rows columns"], input_axis: int
) -> tuple[Int8[Array | np.ndarray, "rows columns"], Float[Array | np.ndarray, " channels"]]:
    """Integers and the scale of each channel. input_axis: what products sum over.

    A channel whose scale would be zero or subnormal, which accelerators read as zero, has zeros.
    """
    numpy = array_module(weights)
    weights = weights.astype(jnp.float32)
    # Products with reciprocals, as XLA divides by a constant and by a vector: NumPy and JAX agree.
    scale = numpy.abs(weights).max(axis=input_axis, keepdims=True) * np.float32(1 / _LARGEST)
    scale = numpy.where(scale >= _SMALLEST_SCALE, scale, np.float32(1))
    integers = numpy.clip(numpy.round(weights * (1 / scale)), -_LARGEST, _LARGEST)
    return integers.astype(jnp.int8), scale.squeeze(input_axis)


def int8_matmul(
    x: Float[Array, "*batch I"],
    kernel: Int8[Array, "I O"],
    scale: Float[Array, " O"],
    dtype: DTypeLike,
) -> Float[Array, "*batch O"]:
    """`x @ (kernel * scale)` in float32, from operands in `dtype`."""
    x, kernel = _read_here(x.astype(dtype), kernel)
    product = jnp.dot(
        x,
        kernel.astype(dtype),
        precision=precision_of(dtype),
        preferred_element_type=jnp.float32,
    )
    return product * scale


def int8_matmul_of_heads(
    x: Float[Array, "B heads tokens K"],
    kernel: Int8[Array, "I O"],
    scale: Float[Array, " O"],
    dtype: DTypeLike,
) -> Float[Array, "B tokens O"]:
    """`int8_matmul` of features that are head by head, with I = heads K."""
    x, kernel = _read_here(x.astype(dtype), kernel)
    product = jnp.einsum(
        "bhlk,hko->blo",
        x,
        kernel.astype(dtype).reshape(x.shape[1], x.shape[3], -1),
        precision=precision_of(dtype),
        preferred_element_type=jnp.float32,
    )
    return product * scale


def int8_head(
    x: Float[Array, "*batch D"],
    embedding: Int8[Array, "V D"],
    scale: Float[Array, " V"],
    dtype: DTypeLike,
) -> Float[Array, "*batch V"]:
    """The product with a table of token embeddings, as `int8_matmul`.

    The barrier has the table as it is stored: a transpose before it could be a copy in memory.
    """
    x, embedding = _read_here(x.astype(dtype), embedding)
    product = jnp.einsum(
        "...d,vd->...v",
        x,
        embedding.astype(dtype),
        precision=precision_of(dtype),
        preferred_element_type=jnp.float32,
    )
    return product * scale


def int8_embeddings(
    tokens: Int[Array, "*batch"],
    embedding: Int8[Array, "V D"],
    scale: Float[Array, " V"],
    dtype: DTypeLike,
) -> Float[Array, "*batch D"]:
    """The embeddings of tokens, with the rows that `jnp.take` selects from a table of floats.

    NaN for tokens from V on and below -V. Token -1 is the last one.
    """
    # Integers cannot be NaN: rows out of range are -128, and their scale is NaN.
    rows = jnp.take(embedding, tokens, axis=0, mode="fill").astype(jnp.float32)
    return (rows * jnp.take(scale, tokens, axis=0, mode="fill")[..., None]).astype(dtype)


def _read_here(x: Array, kernel: Array) -> tuple[Array, Array]:
    """The operands of a product, with the kernel's conversion in the same iteration of a loop.

    The conversion does not depend on the loop of decode steps. Without the barrier XLA may convert
    all kernels before the loop, so that every step reads a copy in the wider dtype.
    """
    if not backend_settings().int8_barrier:
        return x, kernel
    x, kernel = jax.lax.optimization_barrier((x, kernel))
    return x, kernel

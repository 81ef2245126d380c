"""Matrix products with few rows and large kernels, as in decode steps.

Letters beside those of `pid_jax.models.protocol`: I input features, O output features.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """The precision of a product in this dtype. By default GPU and TPU round float32 inputs."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def matmul_reference(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I O"]
) -> Float[Array, "*batch O"]:
    """`x @ kernel` in float32."""
    precision = precision_of(x.dtype)
    return jnp.dot(x, kernel, precision=precision, preferred_element_type=jnp.float32)


def head_matmul(
    x: Float[Array, "*batch D"], kernel: Float[Array, "D V"], dtype: DTypeLike
) -> Float[Array, "*batch V"]:
    """`x @ kernel` in float32 from operands in `dtype`, with the kernel's gradient in its dtype.

    JAX computes the gradient of a kernel that was converted to bfloat16 in bfloat16. The sum over
    chunks of rows would lose digits. The gradient of x does not depend on the kernel's dtype.
    """
    if jnp.dtype(dtype) == kernel.dtype == jnp.float32:
        return matmul_reference(x.astype(dtype), kernel)
    return _rounded_matmul(x, kernel, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_matmul(x: Array, kernel: Array, dtype: DTypeLike) -> Array:
    return matmul_reference(x.astype(dtype), kernel.astype(dtype))


def _rounded_matmul_forward(x: Array, kernel: Array, dtype: DTypeLike) -> tuple[Array, Any]:
    return _rounded_matmul(x, kernel, dtype), (x, kernel)


def _rounded_matmul_backward(
    dtype: DTypeLike, operands: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = operands
    gradient = gradient.astype(dtype)
    rows = tuple(range(x.ndim - 1))
    of_x = matmul_reference(gradient, kernel.astype(dtype).T)
    of_kernel = jax.lax.dot_general(
        x.astype(dtype),
        gradient,
        ((rows, rows), ((), ())),
        precision=precision_of(dtype),
        preferred_element_type=jnp.float32,
    )
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


_rounded_matmul.defvjp(_rounded_matmul_forward, _rounded_matmul_backward)


FEW_ROWS = 64
"""`matmul` uses the transposed kernel for 2 to `FEW_ROWS` rows."""


@jax.custom_batching.custom_vmap
def matmul(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I O"], transposed: Float[Array, "O I"]
) -> Float[Array, "*batch O"]:
    """`x @ kernel` in float32, from the kernel or its transpose, whichever a CPU reads faster.

    In a decode step, matrix products have few rows, so they are limited by memory bandwidth. XLA's
    CPU product reads its first operand row by row and its second in strips of about 256 bytes.
    Therefore `transposed @ x.T` takes 0.5 to 0.8 of the time of `x @ kernel` for 4 to 16 rows, 0.8
    to 0.9 for 24 to 60, and the same time for 120. Vmapped calls count as one product with the rows
    of all calls. Does not support reverse-mode differentiation.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if not 1 < count <= FEW_ROWS:
        return matmul_reference(x, kernel)
    # A product with 30 columns takes 1.4 times as long as one with 32.
    padding = -count % (4 if count <= 4 else 8)
    outputs = jax.lax.dot_general(
        transposed,
        jnp.pad(rows, ((0, padding), (0, 0))),
        (((1,), (1,)), ((), ())),
        precision=precision_of(x.dtype),
        preferred_element_type=jnp.float32,
    )
    # Without the barrier XLA rewrites the product and its transpose as `x @ transposed.T`, which
    # takes twice as long.
    outputs = jax.lax.optimization_barrier(outputs)
    return outputs[:, :count].T.reshape(*x.shape[:-1], len(transposed))


@matmul.def_vmap
def _multiply_all_rows(
    size: int, batched: Sequence[bool], x: Array, kernel: Array, transposed: Array
) -> tuple[Array, bool]:
    """Multiplies all vmapped rows with the kernel in one product."""
    if batched[1] or batched[2]:
        raise NotImplementedError("matmul takes one kernel")
    return matmul(x, kernel, transposed), True


def with_transposes(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters of modules, with a `transposed` beside each `kernel`."""
    if "kernel" in params:
        return {**params, "transposed": jnp.transpose(params["kernel"])}
    return {
        name: with_transposes(child) if isinstance(child, Mapping) else child
        for name, child in params.items()
    }


def with_decoder_transposes(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder's parameters, with the transposes of all kernels that a decode step reads.

    These are the kernels of the modules `layers_0`, `layers_1`, ... The `key` and `value` of a
    module `cross_attention` are an exception: decode steps do not compute these projections.
    """
    changed = dict(decoder)
    for name, layer in decoder.items():
        if name.startswith("layers_"):
            changed[name] = with_transposes(layer)
            if "cross_attention" in layer:
                cross = changed[name]["cross_attention"]
                changed[name]["cross_attention"] = {
                    **cross,
                    **{part: layer["cross_attention"][part] for part in ("key", "value")},
                }
    return changed

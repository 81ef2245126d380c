"""Matrix products of few rows with large kernels, as each decode step has them.

Shapes: I input features, O output features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """float32 products are float32: by default GPU and TPU would round their inputs."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def multiply_plainly(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I O"]
) -> Float[Array, "*batch O"]:
    """`x @ kernel` in float32."""
    precision = precision_of(x.dtype)
    return jnp.dot(x, kernel, precision=precision, preferred_element_type=jnp.float32)


FEW_ROWS = 64
"""From 2 to so many rows, `multiply` is faster by the kernel's transpose than by the kernel."""


@jax.custom_batching.custom_vmap
def multiply(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I O"], transposed: Float[Array, "O I"]
) -> Float[Array, "*batch O"]:
    """`x @ kernel` in float32, by whichever of a kernel and its transpose a CPU reads faster.

    A decode step multiplies few rows with all of a model's kernels, which come from memory. XLA's
    CPU products take the second operand in strips of columns, of each row some 256 bytes, but the
    first one row by row: `transposed @ x.T` takes 0.5 to 0.8 of the time of `x @ kernel` for 4 to
    16 rows, 0.8 to 0.9 for 24 to 60, as much for 120. The rows of all vmapped calls count. Not
    differentiable in reverse.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if not 1 < count <= FEW_ROWS:
        return multiply_plainly(x, kernel)
    # 30 columns take 1.4 times as long as 32.
    padding = -count % (4 if count <= 4 else 8)
    outputs = jax.lax.dot_general(
        transposed,
        jnp.pad(rows, ((0, padding), (0, 0))),
        (((1,), (1,)), ((), ())),
        precision=precision_of(x.dtype),
        preferred_element_type=jnp.float32,
    )
    # Without the barrier XLA turns the product and its transpose into `x @ transposed.T`, which
    # takes twice as long.
    outputs = jax.lax.optimization_barrier(outputs)
    return outputs[:, :count].T.reshape(*x.shape[:-1], len(transposed))


@multiply.def_vmap
def _multiply_all_rows(
    size: int, batched: Sequence[bool], x: Array, kernel: Array, transposed: Array
) -> tuple[Array, bool]:
    """A batch of x is more rows for the same kernel."""
    if batched[1] or batched[2]:
        raise NotImplementedError("multiply takes one kernel")
    return multiply(x, kernel, transposed), True


def with_transposes(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of some modules, with the transpose of each `Dense`'s kernel beside it."""
    if "kernel" in params:
        return {**params, "transposed": jnp.transpose(params["kernel"])}
    return {
        name: with_transposes(child) if isinstance(child, Mapping) else child
        for name, child in params.items()
    }


def with_decoder_transposes(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder's parameters with the transposes of the kernels that each of its steps reads.

    Of its modules `layers_0`, `layers_1`, ... all but the projections of documents to the keys and
    values of an attention that reads nothing else: no decode step computes those.
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

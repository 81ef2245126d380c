"""Layers that families share: products, norms, activations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pid_jax.models.protocol import Params

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
"""By the names of Hugging Face configurations, some of which mean the same: `gelu_new` and
`gelu_pytorch_tanh` are the tanh approximation."""


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """float32 products are float32: by default GPU and TPU would round their inputs."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


FEW_ROWS = 64
"""From 2 to so many rows, `multiply` is faster by the kernel's transpose than by the kernel."""


@jax.custom_batching.custom_vmap
def multiply(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I O"], transposed: Float[Array, "O I"]
) -> Float[Array, "*batch O"]:
    """`x @ kernel` in float32, by whichever of a kernel and its transpose a CPU reads faster.

    A decoding step multiplies few rows with all of a model's kernels, which stand in memory.
    XLA's CPU products take the second operand in strips of columns, of each row some 256 bytes,
    but the first one row by row: `transposed @ x.T` takes 0.5 to 0.8 of the time of `x @ kernel`
    for 4 to 16 rows, 0.8 to 0.9 for 24 to 60, as much for 120. The rows are those of all
    vmapped calls together. Not differentiable in reverse.
    """
    precision = precision_of(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if not 1 < count <= FEW_ROWS:
        return jnp.dot(x, kernel, precision=precision, preferred_element_type=jnp.float32)
    # 30 columns take 1.4 times as long as 32.
    room = -count % (4 if count <= 4 else 8)
    outputs = jax.lax.dot_general(
        transposed,
        jnp.pad(rows, ((0, room), (0, 0))),
        (((1,), (1,)), ((), ())),
        precision=precision,
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


def with_transposes(params: Params) -> Params:
    """The parameters of some modules, with the transpose of each `Dense`'s kernel beside it."""
    if "kernel" in params:
        return {**params, "transposed": jnp.transpose(params["kernel"])}
    return {
        name: with_transposes(child) if isinstance(child, Mapping) else child
        for name, child in params.items()
    }


def with_decoder_transposes(decoder: Params) -> dict[str, Any]:
    """A decoder's parameters with the transposes of the kernels that each of its steps reads.

    Of its modules `layers_0`, `layers_1`, ... all but the projections of documents, which are
    no part of a step, to the keys and values of an attention that reads nothing else.
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


class Dense(nn.Module):
    """A matrix product; the kernel is stored `[in, out]`.

    Where the parameters hold its transpose too (`with_transposes`), few rows are multiplied
    with that.
    """

    features: int
    axes: tuple[str, str]
    """Logical axis names of the kernel, see `pid_jax.sharding`."""
    stddev: float
    """Of the normal distribution that a new kernel is drawn from."""
    dtype: DTypeLike = jnp.float32
    output_dtype: DTypeLike | None = None
    """What the product is accumulated and returned in, where that is not `dtype`."""
    bias: bool = False
    """Whether a vector, zero at first, is added to the product."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        product = self._product(x)
        if not self.bias:
            return product
        init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
        return product + self.param("bias", init, (self.features,), jnp.float32).astype(
            product.dtype
        )

    def _product(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        if self.has_variable("params", "transposed"):
            transposed = self.get_variable("params", "transposed")
            operands = (operand.astype(self.dtype) for operand in (x, kernel, transposed))
            return multiply(*operands).astype(self.output_dtype or self.dtype)
        return jnp.dot(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            precision=precision_of(self.dtype),
            preferred_element_type=self.output_dtype,
        )


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich, arXiv 1910.07467), in float32."""

    epsilon: float
    dtype: DTypeLike = jnp.float32
    around_one: bool = False
    """Whether the parameter is what the scale has above one, as in Gemma."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        start = nn.initializers.zeros if self.around_one else nn.initializers.ones
        init = nn.with_logical_partitioning(start, ("norm",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32).astype(jnp.float32)
        if self.around_one:
            scale = scale + 1.0
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al., arXiv 1607.06450), in float32."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        scale = self.param("scale", ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", zeros, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale + bias).astype(self.dtype)

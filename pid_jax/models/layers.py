"""Layers that families share: products, norms, activations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pid_jax.backends.matmul import head_matmul, matmul, precision_of

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


class Dense(nn.Module):
    """A matrix product. The kernel is stored as `[I, O]`: I input features, O output features.

    If the parameters also have the transposed kernel, `backends.matmul.matmul` uses either.
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
            return matmul(*operands).astype(self.output_dtype or self.dtype)
        if self.output_dtype == jnp.float32:
            return head_matmul(x, kernel, self.dtype)
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

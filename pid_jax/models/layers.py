"""Layers that families share: products, norms, activations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pid_jax.backends.dropout import AttentionDropout
from pid_jax.backends.int8 import (
    EMBEDDING_SCALE,
    KERNEL_SCALE,
    int8_embeddings,
    int8_head,
    int8_matmul,
    int8_matmul_of_heads,
)
from pid_jax.backends.matmul import head_matmul, matmul, precision_of
from pid_jax.backends.settings import backend_settings
from pid_jax.models.rematerialisation import products_stored
from pid_jax.sharding import constrain, constrain_features, gathered

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

    If the parameters also have the transposed kernel, `backends.matmul.matmul` uses either. If
    they have scales beside a kernel of integers, the product is that of `backends.int8`.
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
    def __call__(
        self,
        x: Float[Array, "*batch I"] | Float[Array, "B heads tokens K"],
        *,
        by_head: bool = False,
        training: bool = False,
    ) -> Float[Array, "*out_batch O"]:
        """by_head: x is head by head, `[B, heads, tokens, K]`, with I = heads K.

        training: selects the way to the same product that is faster in training.
        """
        product = self._product_of_heads(x, training) if by_head else self._product(x)
        product = constrain_features(product, self.axes[1] if self.axes[1] != "embed" else None)
        if not self.bias:
            return product
        init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
        return product + self.param("bias", init, (self.features,), jnp.float32).astype(
            product.dtype
        )

    def _product_of_heads(
        self, x: Float[Array, "B heads tokens K"], training: bool
    ) -> Float[Array, "B tokens O"]:
        batch, heads, tokens, width = x.shape
        # A training step of T5-base on a TPU v5e takes 1 % more cycles with the product below.
        contracts_heads = backend_settings().contracts_heads and not training
        if not contracts_heads or self.is_initializing():
            return self._product(x.swapaxes(1, 2).reshape(batch, tokens, heads * width))
        kernel = self.get_variable("params", "kernel")
        if self.has_variable("params", KERNEL_SCALE):
            scale = self.get_variable("params", KERNEL_SCALE)
            product = int8_matmul_of_heads(x, kernel, scale, self.dtype)
            return product.astype(self.output_dtype or self.dtype)
        kernel = gathered(kernel.astype(self.dtype), *self.axes)
        return jnp.einsum(
            "bhlk,hko->blo",
            x.astype(self.dtype),
            kernel.reshape(heads, width, self.features),
            precision=precision_of(self.dtype),
            preferred_element_type=self.output_dtype,
        )

    def _product(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        if self.has_variable("params", KERNEL_SCALE):
            scale = self.get_variable("params", KERNEL_SCALE)
            product = int8_matmul(x, kernel, scale, self.dtype)
            return product.astype(self.output_dtype or self.dtype)
        if self.has_variable("params", "transposed"):
            transposed = self.get_variable("params", "transposed")
            operands = (operand.astype(self.dtype) for operand in (x, kernel, transposed))
            return matmul(*operands).astype(self.output_dtype or self.dtype)
        if self.output_dtype == jnp.float32:
            return head_matmul(x, gathered(kernel, *self.axes), self.dtype)
        return jnp.dot(
            x.astype(self.dtype),
            gathered(kernel.astype(self.dtype), *self.axes),
            precision=precision_of(self.dtype),
            preferred_element_type=self.output_dtype,
        )


TABLE_AXES = ("vocab", "embed")
"""The logical axes of a table of token embeddings."""


class TokenEmbeddings(nn.Module):
    """A table of token embeddings, and the product with it that is a tied head."""

    vocab_size: int
    features: int
    stddev: float
    """Of the normal distribution that a new table is drawn from."""
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        init = nn.initializers.normal(self.stddev)
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(init, TABLE_AXES),
            (self.vocab_size, self.features),
            jnp.float32,
        )

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The embeddings of tokens. NaN from `vocab_size` on. Token -1 is the last one."""
        if self.has_variable("params", EMBEDDING_SCALE):
            return int8_embeddings(tokens, self.embedding, self._scale, self.dtype)
        table = gathered(self.embedding.astype(self.dtype), *TABLE_AXES)
        # Its gradient is first summed over documents, then split like the parameter.
        table = constrain(table, "vocab", None)
        return constrain_features(jnp.take(table, tokens, axis=0), None)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """The products of `hidden` with all embeddings, in float32."""
        if self.has_variable("params", EMBEDDING_SCALE):
            return int8_head(hidden, self.embedding, self._scale, self.dtype)
        table = gathered(self.embedding, *TABLE_AXES)
        return constrain_features(head_matmul(hidden, table.T, self.dtype), "vocab")

    @property
    def _scale(self) -> Float[Array, " V"]:
        scale: Array = self.get_variable("params", EMBEDDING_SCALE)
        return scale


class WeightDropout(nn.Dropout):
    """Dropout of attention weights, which attention applies where it computes them."""

    def drawn(self, deterministic: bool) -> AttentionDropout | None:
        """What `attention.attend` takes: None if deterministic."""
        if deterministic:
            return None
        key = self.make_rng(self.rng_collection) if self.rate else None
        return AttentionDropout(key, self.rate, same_for_queries=bool(self.broadcast_dims))


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich, arXiv 1910.07467), in float32."""

    epsilon: float
    dtype: DTypeLike = jnp.float32
    around_one: bool = False
    """Whether the parameter is what the scale has above one, as in Gemma."""

    @property
    def has_scale(self) -> bool:
        """False if the scale is part of the kernels that follow (`backends.projections`)."""
        return self.is_initializing() or self.has_variable("params", "scale")

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        if not self.has_scale:
            x = x.astype(jnp.float32)
            return (x * inverse_rms(x, self.epsilon)).astype(self.dtype)
        start = nn.initializers.zeros if self.around_one else nn.initializers.ones
        init = nn.with_logical_partitioning(start, ("norm",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32).astype(jnp.float32)
        if self.around_one:
            scale = scale + 1.0
        x = x.astype(jnp.float32)
        return (x * inverse_rms(x, self.epsilon) * scale).astype(self.dtype)


def inverse_rms(x: Float[Array, "*batch D"], epsilon: float) -> Float[Array, "*batch 1"]:
    """The factor of `RMSNorm`."""
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


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


@products_stored
def normed_feed_forward(
    layer: nn.Module, x: Float[Array, "*batch D"], deterministic: bool
) -> Float[Array, "*batch D"]:
    """The feed-forward of a layer, applied to x after its norm.

    layer: has the modules `feed_forward_norm` and `feed_forward`.
    """
    output: Array = layer.feed_forward(layer.feed_forward_norm(x), deterministic)
    return output

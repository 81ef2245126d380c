"""Layers that families share."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from pid_jax.models.protocol import KeyValue

MASKED_SCORE = -1e9
"""Stands for minus infinity, yet leaves a row in which everything is masked free of NaN."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
"""By the names of Hugging Face configurations; `gelu_new` is the tanh approximation."""


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """float32 products are float32: by default GPU and TPU would round their inputs."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


class Source(NamedTuple):
    """Something to attend to: keys, values and what is added to or struck from their scores."""

    layer: KeyValue
    mask: Bool[Array, "#B #L S"] | None = None
    """True where a query may look; None where it may look everywhere."""
    bias: Float[Array, "#B H L S"] | None = None


def attend(
    query: Float[Array, "B H L K"],
    sources: Sequence[Source],
    scale: float = 1.0,
    dropout: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> Float[Array, "B H L K"]:
    """Attention with a single softmax, in float32, over all sources together.

    A decoder attends at once to what it has cached and to the tokens at hand without
    copying either into one array first. `dropout` is applied to the softmax's output.
    """
    precision = precision_of(query.dtype)
    scores = []
    for (key, _), mask, bias in sources:
        score = jnp.einsum(
            "bhlk,bhsk->bhls",
            query,
            key,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        if scale != 1.0:
            score = score * scale
        if bias is not None:
            score = score + bias
        if mask is not None:
            score = jnp.where(mask[:, None], score, MASKED_SCORE)
        scores.append(score)
    joined = scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)
    weights = dropout(jax.nn.softmax(joined, axis=-1).astype(query.dtype))

    outputs = []
    start = 0
    for (_, value), _, _ in sources:
        stop = start + value.shape[2]
        part = weights[..., start:stop]
        outputs.append(jnp.einsum("bhls,bhsk->bhlk", part, value, precision=precision))
        start = stop
    return sum(outputs[1:], start=outputs[0])


def causal_mask(length: int) -> Bool[Array, "1 {length} {length}"]:
    """True where a query may look at a key of the same sequence: at itself and before."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def split_heads(x: Float[Array, "B S HK"], heads: int) -> Float[Array, "B H S K"]:
    """One projection's output as attention reads it."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "B H S K"]) -> Float[Array, "B S HK"]:
    """The inverse of `split_heads`."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


class Dense(nn.Module):
    """A matrix product without bias; the kernel is stored `[in, out]`."""

    features: int
    axes: tuple[str, str]
    """Logical axis names of the kernel, see `pid_jax.sharding`."""
    stddev: float
    """Of the normal distribution that a new kernel is drawn from."""
    dtype: DTypeLike = jnp.float32
    output_dtype: DTypeLike | None = None
    """What the product is accumulated and returned in, where that is not `dtype`."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
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

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


def relative_position_bucket(
    relative_position: Int[Array, "L S"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[Array, "L S"]:
    """T5's buckets of key position minus query position (Raffel et al., arXiv 1910.10683, 2.1).

    Half of the buckets hold one distance each; the others widen logarithmically up to
    `max_distance`, and the last takes all beyond. Bidirectional: half for each direction.
    """
    if bidirectional:
        buckets //= 2
        offset = jnp.where(relative_position > 0, buckets, 0)
        distance = jnp.abs(relative_position)
    else:
        offset = jnp.zeros_like(relative_position)
        distance = jnp.maximum(-relative_position, 0)
    exact = buckets // 2
    growth = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    growth = growth / math.log(max_distance / exact) * (buckets - exact)
    coarse = jnp.minimum(exact + growth.astype(distance.dtype), buckets - 1)
    return offset + jnp.where(distance < exact, distance, coarse)


def nearby_start(
    key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike, bias: "RelativePositionBias"
) -> Float[Array, "buckets heads"]:
    """Where a new table of relative position biases begins: some heads look nearby.

    Of every four heads one starts out looking at everything, the others around the token
    before, the next one (the token itself where there is no next), and the few before: by a
    penalty that grows with the distance from there, as in ALiBi (Press et al., arXiv
    2108.12409). T5 itself starts from noise of `stddev` alone; but tables move slowly in
    training and word order has to be learnt before much else: a model of a million parameters
    that started so had 68% of unseen dialogues right after 500 steps, from here 99%.
    """
    farthest = bias.max_distance
    distances = jnp.arange(-farthest, farthest + 1 if bias.bidirectional else 1)
    bucket = bias.bucket_of(distances[None, :])[0]
    in_bucket = bucket[:, None] == jnp.arange(bias.buckets)
    centres = jnp.array([0.0, -1.0, 1.0 if bias.bidirectional else 0.0, -3.0])
    slopes = jnp.array([0.0, 1.0, 1.0, 0.3])
    heads = jnp.arange(bias.heads) % len(centres)
    penalty = -slopes[heads] * jnp.abs(distances[:, None] - centres[heads])
    penalty = jnp.maximum(penalty, -8.0)  # steeper, and a head could hardly learn to look afar
    table = in_bucket.T.astype(jnp.float32) @ penalty / jnp.maximum(in_bucket.sum(0), 1)[:, None]
    return (table + bias.stddev * jax.random.normal(key, shape)).astype(dtype)


class RelativePositionBias(nn.Module):
    """A learned number per head and bucket of distance, added to attention scores."""

    heads: int
    buckets: int
    max_distance: int
    bidirectional: bool
    stddev: float

    def bucket_of(self, relative_position: Int[Array, "L S"]) -> Int[Array, "L S"]:
        """`relative_position_bucket` with this table's sizes."""
        return relative_position_bucket(
            relative_position,
            bidirectional=self.bidirectional,
            buckets=self.buckets,
            max_distance=self.max_distance,
        )

    @nn.compact
    def __call__(
        self, query_slots: Int[Array, " L"], key_slots: Int[Array, " S"]
    ) -> Float[Array, "1 H L S"]:
        init = nn.with_logical_partitioning(
            functools.partial(nearby_start, bias=self), ("buckets", "heads")
        )
        table = self.param("embedding", init, (self.buckets, self.heads), jnp.float32)
        bucket = self.bucket_of(key_slots[None, :] - query_slots[:, None])
        return table.astype(jnp.float32)[bucket].transpose(2, 0, 1)[None]

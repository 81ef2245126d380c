"""Layers that families share."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from pid_jax.models.protocol import KeyValue, Params

MASKED_SCORE = -1e9
"""Stands for minus infinity, yet leaves a row in which everything is masked free of NaN."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
"""By the names of Hugging Face configurations, two of which mean the tanh approximation."""


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
    soft_cap: float | None = None,
) -> Float[Array, "B H L K"]:
    """Attention with a single softmax, in float32, over all sources together.

    A decoder attends at once to what it has cached and to the tokens at hand without
    copying either into one array first. `dropout` is applied to the softmax's output.

    Sources may have fewer heads than the query, G: then each serves H / G consecutive heads of
    the query (Ainslie et al., arXiv 2305.13245), which to the products are more rows of the
    same head; keys and values are never repeated.
    """
    precision = precision_of(query.dtype)
    batch, heads, length, width = query.shape
    groups = sources[0].layer.key.shape[1]
    query = query.reshape(batch, groups, heads // groups * length, width)
    scores = []
    for (key, _), mask, bias in sources:
        score = jnp.einsum(
            "bhlk,bhks->bhls",
            query,
            key,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        score = score.reshape(batch, heads, length, key.shape[3])
        if scale != 1.0:
            score = score * scale
        if soft_cap is not None:
            score = capped(score, soft_cap)
        if bias is not None:
            score = score + bias
        if mask is not None:
            score = jnp.where(mask[:, None], score, MASKED_SCORE)
        scores.append(score)
    joined = scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)
    weights = dropout(jax.nn.softmax(joined, axis=-1).astype(query.dtype))
    weights = weights.reshape(batch, groups, heads // groups * length, weights.shape[-1])

    outputs = []
    start = 0
    for (_, value), _, _ in sources:
        stop = start + value.shape[3]
        part = weights[..., start:stop]
        outputs.append(_weighted(part, value, precision))
        start = stop
    return sum(outputs[1:], start=outputs[0]).reshape(batch, heads, length, width)


def capped(x: Float[Array, "*any"], bound: float) -> Float[Array, "*any"]:
    """Soft-capping: bends what comes near to `bound`, so that nothing passes it."""
    return jnp.tanh(x / bound) * bound


def _weighted(
    weights: Float[Array, "B H L S"],
    value: Float[Array, "B H K S"],
    precision: jax.lax.Precision | None,
) -> Float[Array, "B H L K"]:
    """The values' sums by weight. A CPU transposes the second operand first: the smaller one."""
    last = (((3,), (3,)), ((0, 1), (0, 1)))
    if weights.shape[2] < 8:
        return jax.lax.dot_general(value, weights, last, precision=precision).swapaxes(2, 3)
    return jax.lax.dot_general(weights, value, last, precision=precision)


CPU_BLOCK = 512
"""Queries at a time on a CPU, of one head: their scores stay in its caches."""
BLOCK_SCORES = 1 << 27
"""Scores at a time elsewhere (512 MiB in float32), of all heads of a block of queries."""


def attend_by_blocks(
    query: Float[Array, "B H S K"],
    layer: KeyValue,
    mask: Bool[Array, "B S"],
    distance_bias: Float[Array, "H D"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
    reach: tuple[int, int] | None = None,
) -> Float[Array, "B H S K"]:
    """Self-attention of whole documents that never holds the scores of all of its queries.

    What `attend` gives for one source with `distance_bias[h, s - l + S - 1]` as its bias
    (D = 2 S - 1) and `within(reach)` in its mask, but one block of queries after another, each
    with the bias read from the distances as it is needed: memory grows with S, not with its
    square (Rabe and Staats, arXiv 2112.05682, without their blocks of keys). On a CPU blocks are
    of one head. With 12 heads of 1,536 tokens that takes 0.4 of `attend`'s time there. Where
    `reach` is short, a block reads only the keys that its queries may look at.
    """
    batch, heads, length, width = query.shape
    shared_by = heads // layer.key.shape[1]
    attend_block = functools.partial(_block, scale=scale, soft_cap=soft_cap, reach=reach)

    def on_cpu(query: Array, key: Array, value: Array, mask: Array, bias: Array | None) -> Array:
        block = min(CPU_BLOCK, length)
        blocks = -(-length // block)
        padded = jnp.pad(query, ((0, 0), (0, 0), (0, blocks * block - length), (0, 0)))

        def one(index: jax.Array) -> jax.Array:
            row, head, start = (
                index // (heads * blocks),
                index // blocks % heads,
                index % blocks * block,
            )
            part = jax.lax.dynamic_slice(padded, (row, head, start, 0), (1, 1, block, width))
            return attend_block(
                part[0],
                key[row, head // shared_by][None],
                value[row, head // shared_by][None],
                mask[row],
                None if bias is None else bias[head][None],
                start,
            )

        attended = jax.lax.map(one, jnp.arange(batch * heads * blocks))
        return attended.reshape(batch, heads, blocks * block, width)[:, :, :length]

    def elsewhere(query: Array, key: Array, value: Array, mask: Array, bias: Array | None) -> Array:
        block = min(length, max(BLOCK_SCORES // (batch * heads * length), 16))
        blocks = -(-length // block)
        padded = jnp.pad(query, ((0, 0), (0, 0), (0, blocks * block - length), (0, 0)))

        def one(start: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(padded, start, block, axis=2)
            over_rows = jax.vmap(attend_block, in_axes=(0, 0, 0, 0, None, None))
            return over_rows(part, key, value, mask, bias, start)

        if blocks == 1:
            return one(jnp.int32(0))
        attended = jax.lax.map(one, jnp.arange(blocks) * block)
        whole = jnp.moveaxis(attended, 0, 2).reshape(batch, heads, blocks * block, width)
        return whole[:, :, :length]

    arguments = (query, layer.key, layer.value, mask, distance_bias)
    return jax.lax.platform_dependent(*arguments, cpu=on_cpu, default=elsewhere)


def _block(
    query: Float[Array, "H L K"],
    key: Float[Array, "G K S"],
    value: Float[Array, "G K S"],
    mask: Bool[Array, " S"],
    distance_bias: Float[Array, "H D"] | None,
    start: Int[Array, ""],
    *,
    scale: float,
    soft_cap: float | None,
    reach: tuple[int, int] | None,
) -> Float[Array, "H L K"]:
    """The queries from `start` on, of one document."""
    precision = precision_of(query.dtype)
    heads, length, width = query.shape
    first: int | Array = 0
    if reach is not None and length + sum(reach) < key.shape[2]:
        visible = length + sum(reach)
        first = jnp.clip(start - reach[0], 0, key.shape[2] - visible)
        key = jax.lax.dynamic_slice_in_dim(key, first, visible, axis=2)
        value = jax.lax.dynamic_slice_in_dim(value, first, visible, axis=2)
        mask = jax.lax.dynamic_slice_in_dim(mask, first, visible)
    groups, _, keys = key.shape
    scores = jnp.einsum(
        "hlk,hks->hls",
        query.reshape(groups, -1, width),
        key,
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(heads, length, keys)
    if scale != 1.0:
        scores = scores * scale
    if soft_cap is not None:
        scores = capped(scores, soft_cap)
    distance = first + jnp.arange(keys)[None, :] - (start + jnp.arange(length))[:, None]
    if distance_bias is not None:
        # Queries that only fill the last block have distances beyond the table; any will do.
        scores = scores + distance_bias[:, jnp.maximum(distance + distance_bias.shape[1] // 2, 0)]
    allowed = mask[None] if reach is None else mask[None] & within(reach, distance)
    scores = jnp.where(allowed, scores, MASKED_SCORE)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = jnp.einsum(
        "hls,hks->hlk",
        weights.astype(query.dtype).reshape(groups, -1, keys),
        value,
        precision=precision,
    ).reshape(heads, length, width)
    return (attended / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)


def within(reach: tuple[int, int], distance: Int[Array, "*any"]) -> Bool[Array, "*any"]:
    """Whether a key at this distance from its query may be seen: so far before, so far after."""
    return (distance >= -reach[0]) & (distance <= reach[1])


def causal_mask(length: int) -> Bool[Array, "1 {length} {length}"]:
    """True where a query may look at a key of the same sequence: at itself and before."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def split_heads(x: Float[Array, "B S HK"], heads: int) -> Float[Array, "B H S K"]:
    """A query projection's output as attention reads it."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def split_source_heads(x: Float[Array, "B S HK"], heads: int) -> Float[Array, "B H K S"]:
    """A key or value projection's output as attention reads it."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 3, 1)


def merge_heads(x: Float[Array, "B H S K"]) -> Float[Array, "B S HK"]:
    """The inverse of `split_heads`."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


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
    no part of a step, to keys and values.
    """
    changed = dict(decoder)
    for name, layer in decoder.items():
        if name.startswith("layers_"):
            cross = layer["cross_attention"]
            in_steps = with_transposes({part: cross[part] for part in ("query", "output")})
            others = {part: layer[part] for part in layer if part != "cross_attention"}
            changed[name] = {"cross_attention": {**cross, **in_steps}, **with_transposes(others)}
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


class Rotation(NamedTuple):
    """The frequencies of rotary positions (Su et al., arXiv 2104.09864)."""

    theta: float
    factor: float = 1.0
    """Positions are divided by it ("linear" scaling)."""


def rotate(
    x: Float[Array, "B H S K"], positions: Int[Array, "#B S"], rotation: Rotation
) -> Float[Array, "B H S K"]:
    """Turns each pair of a query's or key's numbers by an angle that its position gives.

    Number i makes a pair with number i + K / 2. The product of a query and a key, both turned,
    depends on the difference of their positions alone.
    """
    half = x.shape[-1] // 2
    exponents = np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = 1 / np.float32(rotation.theta) ** exponents / np.float32(rotation.factor)
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


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


class LearnedPositions(nn.Module):
    """A learned vector for each position, to be added to a token's embedding."""

    positions: int
    features: int
    stddev: float
    offset: int = 0
    """How many rows of the table stand before that of position 0."""
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, positions: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        init = nn.with_logical_partitioning(
            nn.initializers.normal(self.stddev), ("positions", "embed")
        )
        shape = (self.offset + self.positions, self.features)
        table = self.param("embedding", init, shape, jnp.float32)
        return _rows_of(table, positions + self.offset, self.dtype)


class SinusoidalPositions(nn.Module):
    """Sines and cosines for each position (Vaswani et al., arXiv 1706.03762, section 3.5).

    A table among the parameters, as checkpoints have it, which training leaves as it is.
    """

    positions: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, positions: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        init = nn.with_logical_partitioning(
            lambda _, shape: jnp.asarray(sinusoids(shape)), ("positions", "embed")
        )
        table = self.param("sinusoids", init, (self.positions, self.features))
        return _rows_of(jax.lax.stop_gradient(table), positions, self.dtype)


def sinusoids(shape: tuple[int, ...]) -> Float[np.ndarray, "positions D"]:
    """The table of `SinusoidalPositions`: the sines of all frequencies, then their cosines."""
    positions, features = shape
    wavelengths = 10000 ** (2 * (np.arange(features) // 2) / features)
    angles = np.arange(positions)[:, None] / wavelengths
    halves = np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])
    return np.concatenate(halves, axis=1).astype(np.float32)


def _rows_of(
    table: Float[Array, "positions D"], rows: Int[Array, "B L"], dtype: DTypeLike
) -> Float[Array, "B L D"]:
    # Guessed tokens that are never kept may stand beyond the table: they must not be NaN there.
    return jnp.take(table, rows, axis=0, mode="clip").astype(dtype)


def relative_position_bucket(
    relative_position: Int[Array, "*any"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[Array, "*any"]:
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
    bucket = bias.bucket_of(distances)
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
    starts_nearby: bool = True
    """Whether a new table is `nearby_start`'s, or noise of `stddev` alone, as T5's are."""

    def bucket_of(self, relative_position: Int[Array, "*any"]) -> Int[Array, "*any"]:
        """`relative_position_bucket` with this table's sizes."""
        return relative_position_bucket(
            relative_position,
            bidirectional=self.bidirectional,
            buckets=self.buckets,
            max_distance=self.max_distance,
        )

    def setup(self) -> None:
        start = nn.initializers.normal(self.stddev)
        if self.starts_nearby:
            start = functools.partial(nearby_start, bias=self)
        init = nn.with_logical_partitioning(start, ("buckets", "heads"))
        self.embedding = self.param("embedding", init, (self.buckets, self.heads), jnp.float32)

    def __call__(
        self, query_slots: Int[Array, "#B L"], key_slots: Int[Array, "#B S"]
    ) -> Float[Array, "#B H L S"]:
        """The bias of every query and key, by their places."""
        bucket = self.bucket_of(key_slots[:, None, :] - query_slots[:, :, None])
        return self.embedding.astype(jnp.float32)[bucket].transpose(0, 3, 1, 2)

    def by_distance(self, length: int) -> Float[Array, "H D"]:
        """The bias at distances 1 - length ... length - 1 of a key from its query."""
        bucket = self.bucket_of(jnp.arange(1 - length, length))
        return self.embedding.astype(jnp.float32)[bucket].T

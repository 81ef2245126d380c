"""Pallas kernels (Triton) for decode steps on GPUs. `decode_attention.py` says how they are used.

Blocks of arrays have sizes that are powers of two, as Triton requires. A block that exceeds its
array repeats the last row. Rows of queries that are repeated compute and write the same values
again, and scores of repeated keys are masked, so that no load or store needs a mask.

Letters beside those of `pid_jax.models.protocol`: R heads of an array that may hold the heads of
queries, keys and values one after another.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pid_jax.backends.matmul import precision_of
from pid_jax.backends.scores import MASKED_SCORE, soft_cap

SLOTS = 32
"""Slots of the key/value cache in a block."""
CACHE_ELEMENTS = 8192
"""Elements of a block of cached keys: slots, heads and their width."""
DOCUMENT_TOKENS = 64
"""Tokens of the document in a block."""
QUERIES = (16, 64)
"""The fewest and most queries in a block. Products need 16 rows."""
PROGRAMS = 64
"""The documents are split among further programs if there are fewer programs than this, about one
for every second multiprocessor of an H100. A split takes one or two kernels more."""
NORM_TILE = 1024


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What the computation of scores has beside arrays."""

    scale: float = 1.0
    soft_cap: float | None = None
    epsilon: float | None = None
    """That of RMSNorm, if a kernel divides projections by the root mean square of their input."""


class CacheArrays(NamedTuple):
    """The inputs of `cache_attention`."""

    query: Float[Array, "P B R K"]
    key: Float[Array, "P B R K"]
    """Of the new token. May be the same array as `query`, as may `value`."""
    value: Float[Array, "P B R K"]
    new_mask: Bool[Array, "P B"]
    past_key: Float[Array, "B P G M K"]
    past_value: Float[Array, "B P G M K"]
    past_mask: Bool[Array, "B P M"]
    past_bias: Float[Array, "H M"] | None
    new_bias: Float[Array, " H"] | None
    x: Float[Array, "P B D"] | None
    """The input of the projections, if `Scoring.epsilon`."""


class DocumentArrays(NamedTuple):
    """The inputs of `document_attention`."""

    query: Float[Array, "P B L H K"]
    key: Float[Array, "B G S K"]
    value: Float[Array, "B G S K"]
    mask: Bool[Array, "B S"]
    x: Float[Array, "P B L D"] | None
    """The input of the projections, if `Scoring.epsilon`."""


def norm_tile(width: int) -> int:
    """The largest power of two that divides `width`, at most `NORM_TILE`."""
    return min(width & -width, NORM_TILE)


def _adjusted(scores: Array, scoring: Scoring, bias: Array | None) -> Array:
    """`scores.adjust_scores` for scores of any rank."""
    scores = scores * scoring.scale
    if scoring.soft_cap is not None:
        scores = soft_cap(scores, scoring.soft_cap)
    return scores if bias is None else scores + bias


def _inverse_rms(x_ref: Any, at: tuple[Any, ...], rows: tuple[int, ...], epsilon: float) -> Array:
    """The factors of RMSNorm for the rows of the input that `at` selects."""
    from jax.experimental import pallas as pl

    width = x_ref.shape[-1]
    tile = norm_tile(width)
    total = jnp.zeros(rows, jnp.float32)
    for start in range(0, width, tile):
        part = x_ref[(*at, pl.ds(start, tile))].astype(jnp.float32)
        total += jnp.sum(part * part, axis=-1)
    return jax.lax.rsqrt(total / width + epsilon)


def cache_attention(
    arrays: CacheArrays, first: tuple[int, int, int], heads: int, scoring: Scoring, interpret: bool
) -> tuple[Float[Array, "P B H K"], Float[Array, "P B G K"], Float[Array, "P B G K"]]:
    """The attention of one new token per row to the row's cache and to itself, and its key, value.

    first: the index of the first head in the arrays of queries, keys and values. The returned keys
    and values are those of the new tokens, after the norm.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    documents, prompts, groups, slots, width = arrays.past_key.shape
    block_slots = min(pl.next_power_of_2(slots), SLOTS)
    block_groups = min(groups & -groups, max(CACHE_ELEMENTS // (block_slots * width), 1))
    names = [name for name, leaf in arrays._asdict().items() if leaf is not None]
    kernel = functools.partial(
        _cache_kernel,
        names=names,
        first=first,
        shared=heads // groups,
        blocks=(block_groups, block_slots),
        scoring=scoring,
    )
    dtype = arrays.past_key.dtype
    present = jax.ShapeDtypeStruct((prompts, documents, groups, width), dtype)
    attended, key, value = pl.pallas_call(
        kernel,
        grid=(prompts, documents, groups // block_groups),
        out_shape=(
            jax.ShapeDtypeStruct((prompts, documents, heads, width), arrays.query.dtype),
            present,
            present,
        ),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="cache_attention",
    )(*(leaf for leaf in arrays if leaf is not None))
    return attended, key, value


def _cache_kernel(
    *refs: Any,
    names: list[str],
    first: tuple[int, int, int],
    shared: int,
    blocks: tuple[int, int],
    scoring: Scoring,
) -> None:
    """The program of one row and a block of key/value heads. shared: query heads of each."""
    from jax.experimental import pallas as pl

    inputs = dict(zip(names, refs, strict=False))
    output, present_key, present_value = refs[len(names) :]
    block_groups, block_slots = blocks
    slots = inputs["past_key"].shape[3]
    prompt, document, block = (pl.program_id(axis) for axis in range(3))
    row, past_row = (prompt, document), (document, prompt)
    start = block * block_groups
    some = pl.ds(start, block_groups)
    dtype = present_key.dtype

    factor: Any = 1.0
    if scoring.epsilon is not None:
        factor = _inverse_rms(inputs["x"], row, (), scoring.epsilon)

    def normed(name: str, heads: Any) -> Array:
        # Rounded as the projections of the plain version are.
        projected = inputs[name][(*row, heads, slice(None))].astype(jnp.float32) * factor
        return projected.astype(dtype).astype(jnp.float32)

    key = normed("key", pl.ds(first[1] + start, block_groups))
    value = normed("value", pl.ds(first[2] + start, block_groups))
    present_key[(*row, some, slice(None))] = key.astype(dtype)
    present_value[(*row, some, slice(None))] = value.astype(dtype)

    heads = [(start + jnp.arange(block_groups)) * shared + i for i in range(shared)]
    queries = [normed("query", first[0] + head) for head in heads]
    new_seen = inputs["new_mask"][row]

    def of_new_token(query: Array, head: Array) -> tuple[Array, Array, Array]:
        score = jnp.sum(query * key, axis=-1)
        bias = inputs["new_bias"][head] if "new_bias" in inputs else None
        score = _adjusted(score, scoring, bias)
        return jnp.where(new_seen, score, MASKED_SCORE), jnp.ones_like(score), value

    def add_block(index: Any, sums: Any) -> Any:
        slot = index * block_slots + jnp.arange(block_slots)
        inside = jnp.minimum(slot, slots - 1)
        tokens = (*past_row, some, inside, slice(None))
        keys = inputs["past_key"][tokens].astype(jnp.float32)  # [block_slots, block_groups, K]
        values = inputs["past_value"][tokens].astype(jnp.float32)
        seen = inputs["past_mask"][(*past_row, inside)][:, None]
        after = []
        for query, head, (highest, total, weighted) in zip(queries, heads, sums, strict=True):
            scores = jnp.sum(query[None] * keys, axis=-1)
            bias = None
            if "past_bias" in inputs:
                bias = inputs["past_bias"][head[None, :], inside[:, None]]
            scores = _adjusted(scores, scoring, bias)
            scores = jnp.where(seen, scores, MASKED_SCORE)
            scores = jnp.where((slot < slots)[:, None], scores, -jnp.inf)
            most = jnp.maximum(highest, jnp.max(scores, axis=0))
            weights = jnp.exp(scores - most[None])
            before = jnp.exp(highest - most)
            weighted = weighted * before[:, None] + jnp.sum(weights[:, :, None] * values, axis=0)
            after.append((most, total * before + jnp.sum(weights, axis=0), weighted))
        return after

    sums: Any = [of_new_token(query, head) for query, head in zip(queries, heads, strict=True)]
    count = -(-slots // block_slots)
    sums = add_block(0, sums) if count == 1 else jax.lax.fori_loop(0, count, add_block, sums)
    for head, (_, total, weighted) in zip(heads, sums, strict=True):
        attended = weighted / total[:, None]
        output[(*row, head, slice(None))] = attended.astype(output.dtype)


def document_attention(
    arrays: DocumentArrays, scoring: Scoring, interpret: bool
) -> Float[Array, "P B L H K"]:
    """The attention of all prompts of a document to the document."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    prompts, documents, length, heads, _ = arrays.query.shape
    tokens = arrays.key.shape[2]
    along_prompts = length == 1 or prompts >= QUERIES[0]
    rows, others = (prompts, length) if along_prompts else (length, prompts)
    block_rows = min(max(pl.next_power_of_2(rows), QUERIES[0]), QUERIES[1])
    block_tokens = min(max(pl.next_power_of_2(tokens), 16), DOCUMENT_TOKENS)
    row_blocks, token_blocks = -(-rows // block_rows), -(-tokens // block_tokens)
    splits = _splits(documents * heads * others * row_blocks, token_blocks)
    names = [name for name, leaf in arrays._asdict().items() if leaf is not None]
    kernel = functools.partial(
        _document_kernel,
        names=names,
        along_prompts=along_prompts,
        blocks=(block_rows, block_tokens, row_blocks, -(-token_blocks // splits)),
        scoring=scoring,
    )
    shape = arrays.query.shape
    if splits == 1:
        shapes = [jax.ShapeDtypeStruct(shape, arrays.query.dtype)]
    else:
        of_parts = (splits, *shape)
        sums = jax.ShapeDtypeStruct(of_parts[:-1], jnp.float32)
        shapes = [jax.ShapeDtypeStruct(of_parts, jnp.float32), sums, sums]
    outputs = pl.pallas_call(
        kernel,
        grid=(documents, heads, others * row_blocks, splits),
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="document_attention",
    )(*(leaf for leaf in arrays if leaf is not None))
    if splits == 1:
        return outputs[0]
    weighted, highest, total = outputs
    factors = jnp.exp(highest - jnp.max(highest, axis=0))
    attended = (weighted * factors[..., None]).sum(axis=0) / (total * factors).sum(axis=0)[
        ..., None
    ]
    return attended.astype(arrays.query.dtype)


def _splits(programs: int, token_blocks: int) -> int:
    """The number of parts of a document that have a program each: a power of two."""
    splits = 1
    while programs * splits < PROGRAMS and token_blocks >= splits * 4:
        splits *= 2
    return splits


def _document_kernel(
    *refs: Any,
    names: list[str],
    along_prompts: bool,
    blocks: tuple[int, int, int, int],
    scoring: Scoring,
) -> None:
    """The program of one document, one head, a block of queries and a part of the document."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    inputs = dict(zip(names, refs, strict=False))
    outputs = refs[len(names) :]
    block_rows, block_tokens, row_blocks, token_blocks = blocks
    prompts, _, length, heads, width = inputs["query"].shape
    groups, tokens = inputs["key"].shape[1:3]
    document, head, part = pl.program_id(0), pl.program_id(1), pl.program_id(3)
    other, block = pl.program_id(2) // row_blocks, pl.program_id(2) % row_blocks
    row = block * block_rows + jnp.arange(block_rows)
    row = jnp.minimum(row, (prompts if along_prompts else length) - 1)
    at = (row, document, other) if along_prompts else (other, document, row)
    dtype = inputs["key"].dtype
    precision = precision_of(dtype)
    source = (document, head // (heads // groups))

    query = inputs["query"][(*at, head, slice(None))]
    if scoring.epsilon is not None:
        factor = _inverse_rms(inputs["x"], at, (block_rows,), scoring.epsilon)
        query = query.astype(jnp.float32) * factor[:, None]
    query = query.astype(dtype)

    def add_block(index: Any, sums: Any) -> Any:
        highest, total, weighted = sums
        token = (part * token_blocks + index) * block_tokens + jnp.arange(block_tokens)
        inside = jnp.minimum(token, tokens - 1)
        keys = inputs["key"][(*source, inside, slice(None))]
        values = inputs["value"][(*source, inside, slice(None))]
        scores = triton.dot(query, keys.T, precision=precision).astype(jnp.float32)
        scores = _adjusted(scores, scoring, None)
        seen = inputs["mask"][document, inside]
        scores = jnp.where(seen[None], scores, MASKED_SCORE)
        scores = jnp.where((token < tokens)[None], scores, -jnp.inf)
        most = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights = jnp.exp(scores - most[:, None])
        before = jnp.exp(highest - most)
        product = triton.dot(weights.astype(dtype), values, precision=precision)
        weighted = weighted * before[:, None] + product.astype(jnp.float32)
        return most, total * before + jnp.sum(weights, axis=1), weighted

    # Below every score, yet finite: a part of the document may have no tokens.
    lowest = jnp.full((block_rows,), 10 * MASKED_SCORE, jnp.float32)
    sums = lowest, jnp.zeros_like(lowest), jnp.zeros((block_rows, width), jnp.float32)
    highest, total, weighted = jax.lax.fori_loop(0, token_blocks, add_block, sums)
    if len(outputs) == 1:
        attended = weighted / total[:, None]
        outputs[0][(*at, head, slice(None))] = attended.astype(outputs[0].dtype)
    else:
        outputs[0][(part, *at, head, slice(None))] = weighted
        outputs[1][(part, *at, head)] = highest
        outputs[2][(part, *at, head)] = total

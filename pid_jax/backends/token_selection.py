"""The likeliest token of each row and its log-probability, as greedy decoding selects them.

The plain version is about ten kernels on a GPU, which read the logits four times.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pid_jax.backends.selection import likeliest, token_log_probabilities
from pid_jax.backends.settings import backend_settings, current_platform

BLOCK = 4096
"""Logits of a row that a program reads at once."""
LOWEST = -3e38
"""A finite number below every logit that is finite."""


def likeliest_with_logprob_reference(
    scores: Float[Array, "*rows V"], logits: Float[Array, "*rows V"]
) -> tuple[Int[Array, "*rows"], Float[Array, "*rows"]]:
    """The token with the highest score, the first of equal ones, and its log-probability.

    scores: the logits after logits processors.
    """
    tokens = likeliest(scores)
    return tokens, token_log_probabilities(logits, tokens)


def likeliest_with_logprob(
    scores: Float[Array, "*rows V"], logits: Float[Array, "*rows V"]
) -> tuple[Int[Array, "*rows"], Float[Array, "*rows"]]:
    """`likeliest_with_logprob_reference`, in one kernel if the backend's settings name it."""
    if backend_settings().decode_kernels:
        return likeliest_with_logprob_kernel(scores, logits)
    return likeliest_with_logprob_reference(scores, logits)


def likeliest_with_logprob_kernel(
    scores: Float[Array, "*rows V"], logits: Float[Array, "*rows V"]
) -> tuple[Int[Array, "*rows"], Float[Array, "*rows"]]:
    """`likeliest_with_logprob` in one kernel. It reads an array that is given twice once."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    *rows, vocab_size = logits.shape
    arrays = [logits] if scores is logits else [scores, logits]
    arrays = [x.reshape(-1, vocab_size) for x in arrays]
    count = len(arrays[0])
    tokens, logprobs = pl.pallas_call(
        functools.partial(_kernel, separate=len(arrays) == 2),
        grid=(count,),
        out_shape=(
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct((count,), jnp.float32),
        ),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=current_platform() != "gpu",
        name="likeliest_with_logprob",
    )(*arrays)
    return tokens.reshape(rows), logprobs.reshape(rows)


def _kernel(*refs: Any, separate: bool) -> None:
    """The program of one row."""
    from jax.experimental import pallas as pl

    *inputs, token_ref, logprob_ref = refs
    row = pl.program_id(0)
    vocab_size = inputs[0].shape[1]
    lane = jnp.arange(BLOCK)

    def add_block(block: Any, sums: Any) -> Any:
        best, token, own, highest, total = sums
        index = block * BLOCK + lane
        inside = jnp.minimum(index, vocab_size - 1)
        loaded = inputs[-1][row, inside]
        logits = jnp.where(index < vocab_size, loaded, -jnp.inf)
        scores = logits
        if separate:
            scores = jnp.where(index < vocab_size, inputs[0][row, inside], -jnp.inf)
        better = scores > best
        most = jnp.maximum(highest, logits)
        total = total * jnp.exp(highest - most) + jnp.exp(logits - most)
        return (
            jnp.where(better, scores, best),
            jnp.where(better, index, token),
            jnp.where(better, logits, own),
            most,
            total,
        )

    # Where no score exceeds minus infinity, the first token is selected.
    nothing = jnp.full((BLOCK,), -jnp.inf, jnp.float32)
    start = nothing, lane, nothing, jnp.full((BLOCK,), LOWEST, jnp.float32), jnp.zeros(BLOCK)
    blocks = -(-vocab_size // BLOCK)
    best, token, own, highest, total = jax.lax.fori_loop(0, blocks, add_block, start)
    first = jnp.min(jnp.where(best == jnp.max(best), token, jnp.iinfo(jnp.int32).max))
    selected = jnp.max(jnp.where(token == first, own, -jnp.inf))
    most = jnp.max(highest)
    total = jnp.sum(total * jnp.exp(highest - most))
    token_ref[row] = first
    logprob_ref[row] = selected - (most + jnp.log(total))

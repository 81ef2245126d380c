"""Log-probabilities of single tokens: of each that was chosen, and of the likeliest beside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pid_jax.decoding import rules


class TokenLogprobs(NamedTuple):
    """Logarithms of the probabilities that the model gives tokens, before any rule changes them.

    Of whole outputs, the axis of places T comes last. Of a single place there is no such axis.
    """

    chosen: Float[Array, "*rows T"]
    """Of the token that was chosen."""
    top: Float[Array, "*rows N T"]
    """Of the N likeliest tokens, the likeliest first; N may be 0."""
    top_tokens: Int[Array, "*rows N T"]


def empty(rows: tuple[int, ...], count: int, room: int, numpy: Any = jnp) -> TokenLogprobs:
    """Nothing chosen yet. count: N. numpy: the module that makes the arrays."""
    return TokenLogprobs(
        numpy.zeros((*rows, room), numpy.float32),
        numpy.zeros((*rows, count, room), numpy.float32),
        numpy.zeros((*rows, count, room), numpy.int32),
    )


def likeliest(
    logits: Float[Array, "*rows V"], count: int
) -> tuple[Float[Array, "*rows N"], Int[Array, "*rows N"]]:
    """The log-probabilities of the `count` likeliest tokens, and these tokens."""
    if count == 0:
        nothing = jnp.zeros((*logits.shape[:-1], 0), jnp.float32)
        return nothing, nothing.astype(jnp.int32)
    values, tokens = rules.largest(logits, count)
    return values - jax.nn.logsumexp(logits, axis=-1, keepdims=True), tokens


def written(old: TokenLogprobs, new: TokenLogprobs, column: Int[Array, ""]) -> TokenLogprobs:
    """`old` with a single place's values at this column."""
    return jax.tree.map(
        lambda leaf, values: jax.lax.dynamic_update_index_in_dim(
            leaf, values, column, axis=leaf.ndim - 1
        ),
        old,
        new,
    )

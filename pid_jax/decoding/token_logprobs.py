"""Log-probabilities of single tokens: of each selected token, and of the likeliest beside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pid_jax.backends.selection import largest


class TokenLogprobs(NamedTuple):
    """Natural logarithms of the model's probabilities, before any logits processor.

    Whole outputs have the axis T last. A single token has no such axis.
    """

    selected: Float[Array, "*rows T"]
    """Of the selected token."""
    top: Float[Array, "*rows top T"]
    """Of the likeliest tokens, the likeliest first. There may be none."""
    top_tokens: Int[Array, "*rows top T"]


def empty(rows: tuple[int, ...], top: int, length: int, numpy: Any = jnp) -> TokenLogprobs:
    """Zeros for outputs of `length` tokens. numpy: the module that makes the arrays."""
    return TokenLogprobs(
        numpy.zeros((*rows, length), numpy.float32),
        numpy.zeros((*rows, top, length), numpy.float32),
        numpy.zeros((*rows, top, length), numpy.int32),
    )


def likeliest(
    logits: Float[Array, "*rows V"], count: int
) -> tuple[Float[Array, "*rows top"], Int[Array, "*rows top"]]:
    """The log-probabilities of the `count` likeliest tokens, and these tokens."""
    if count == 0:
        nothing = jnp.zeros((*logits.shape[:-1], 0), jnp.float32)
        return nothing, nothing.astype(jnp.int32)
    values, tokens = largest(logits, count)
    return values - jax.nn.logsumexp(logits, axis=-1, keepdims=True), tokens


def written(old: TokenLogprobs, new: TokenLogprobs, column: Int[Array, ""]) -> TokenLogprobs:
    """`old` with the values of a single token at this column."""
    return jax.tree.map(
        lambda leaf, values: jax.lax.dynamic_update_index_in_dim(
            leaf, values, column, axis=leaf.ndim - 1
        ),
        old,
        new,
    )

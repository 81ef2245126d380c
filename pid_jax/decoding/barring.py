"""Tokens and words that outputs may not hold, as tables for the compiled programs.

They mean what `suppress_tokens`, `begin_suppress_tokens` and `bad_words_ids` mean to transformers
(`transformers.generation.logits_process`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pid_jax.data.batching import Arr
from pid_jax.errors import UserError

ANY = -1
"""In a prefix: whatever stands there."""


class SuppressedTokens(NamedTuple):
    """Which tokens never come, and which do not come first."""

    everywhere: Bool[Arr, " V"]
    at_first: Bool[Arr, " V"]


class BarredWords(NamedTuple):
    """Sequences of tokens, none of which may be completed.

    Sizes are rounded up to powers of two: other words of about the same number and length make
    the same shapes, and no new compilation.
    """

    single: Bool[Arr, " V"]
    """The words of one token."""
    prefixes: Int[Arr, "N M"]
    """The longer words without their last tokens, `ANY` before them."""
    last: Int[Arr, " N"]
    """Their last tokens; V for the padding, which bars nothing."""


def suppressed_tokens(
    everywhere: Sequence[int], at_first: Sequence[int], vocab_size: int
) -> SuppressedTokens | None:
    """The table of these tokens, None for none. Raises `UserError` for an id that no token has."""
    if not everywhere and not at_first:
        return None
    return SuppressedTokens(
        _marked("suppress_tokens", everywhere, vocab_size),
        _marked("begin_suppress_tokens", at_first, vocab_size),
    )


def barred_words(
    words: Sequence[Sequence[int]], end_token_ids: Sequence[int], vocab_size: int
) -> BarredWords | None:
    """The table of these words, None for none.

    A word that is nothing but an end token is left aside, as in transformers. Raises `UserError`
    for an id that no token has.
    """
    words = [word for word in words if len(word) > 1 or word[0] not in end_token_ids]
    if not words:
        return None
    for word in words:
        _check("bad_words_ids", word, vocab_size)
    longer = [word for word in words if len(word) > 1]
    longest = max((len(word) - 1 for word in longer), default=1)
    shape = _rounded_up(len(longer), 4), _rounded_up(longest, 2)
    prefixes = np.full(shape, ANY, np.int32)
    last = np.full(shape[0], vocab_size, np.int32)
    for row, word in enumerate(longer):
        prefixes[row, -(len(word) - 1) :] = word[:-1]
        last[row] = word[-1]
    single = [word[0] for word in words if len(word) == 1]
    return BarredWords(_marked("bad_words_ids", single, vocab_size), prefixes, last)


def suppress(
    logits: Float[Array, "*rows V"],
    tokens: SuppressedTokens,
    begins: Bool[Array, "*#rows"],
) -> Float[Array, "*rows V"]:
    """Bars the suppressed tokens. begins: where the first token is chosen."""
    barred = tokens.everywhere | (tokens.at_first & begins[..., None])
    return jnp.where(barred, -jnp.inf, logits)


def bar_words(
    logits: Float[Array, "*rows V"],
    history: Int[Array, "*rows W"],
    history_mask: Bool[Array, "*rows W"],
    length: int | Int[Array, "*#rows"],
    words: BarredWords,
) -> Float[Array, "*rows V"]:
    """Bars each token that would complete a word.

    The history, its mask and `length` are those of `rules.bar_repeated_ngrams`.
    """
    width = words.prefixes.shape[1]
    length = jnp.broadcast_to(length, history.shape[:-1])[..., None]
    columns = length - width + jnp.arange(width)
    inside = jnp.clip(columns, 0, history.shape[-1] - 1)
    before = jnp.take_along_axis(history, inside, axis=-1)
    real = jnp.take_along_axis(history_mask, inside, axis=-1) & (columns >= 0)
    prefixes = jnp.asarray(words.prefixes)
    same = (before[..., None, :] == prefixes) & real[..., None, :]
    completes = (same | (prefixes == ANY)).all(axis=-1)
    vocab_size = logits.shape[-1]
    last = jnp.where(completes, words.last, vocab_size).reshape(-1, len(words.last))
    rows = jnp.arange(last.shape[0])[:, None]
    barred = jnp.zeros((last.shape[0], vocab_size), bool).at[rows, last].set(True, mode="drop")
    return jnp.where(barred.reshape(logits.shape) | words.single, -jnp.inf, logits)


def _marked(name: str, tokens: Sequence[int], vocab_size: int) -> Bool[np.ndarray, " V"]:
    _check(name, tokens, vocab_size)
    marks = np.zeros(vocab_size, bool)
    marks[list(tokens)] = True
    return marks


def _check(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise UserError(
                f"{name} holds the token id {token}, but ids go from 0 to {vocab_size - 1}"
            )


def _rounded_up(size: int, at_least: int) -> int:
    """To a power of two."""
    return max(at_least, 1 << max(size - 1, 0).bit_length())

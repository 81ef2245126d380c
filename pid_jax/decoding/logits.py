"""Pure functions that change next-token logits: penalties, barred tokens, truncation of sampling.

They take float32 logits `[*rows, V]` and compute what the logits processors of transformers with
the same purpose compute (`transformers.generation.logits_process`). A barred token has the logit
minus infinity. A row's history is the whole input of its decoder, `[start ; prompt ; output]`,
with padding wherever `history_mask` is False. `pid_jax.decoding.logits_processors` applies these
functions to the options of a call.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.data.batching import Arr

ANY = -1
"""In a prefix of a barred word: any token, or none."""


def penalize_repetition(
    logits: Float[Array, "*rows V"],
    history: Int[Array, "*rows L"],
    history_mask: Bool[Array, "*rows L"],
    penalty: float | Float[Arr, ""],
) -> Float[Array, "*rows V"]:
    """Makes the tokens of the history less likely if the penalty is above 1.

    Positive logits are divided by the penalty, negative ones multiplied (Keskar et al., CTRL,
    arXiv 1909.05858, section 4.1, as transformers implements it).
    """
    seen = _at_tokens(logits, history, history_mask)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def bar_repeated_ngrams(
    logits: Float[Array, "*rows V"],
    history: Int[Array, "*rows L"],
    history_mask: Bool[Array, "*rows L"],
    length: int | Int[Array, "*#rows"],
    size: int,
) -> Float[Array, "*rows V"]:
    """Bars each token that would complete an n-gram, n = `size`, of the history.

    length: the number of columns of the history that are filled, left padding included. The next
    token belongs into column `length`. The mask of later columns is not read. (Paulus et al.,
    arXiv 1705.04304, section 2.5.)
    """
    last = jnp.arange(history.shape[-1])
    length = jnp.broadcast_to(length, history.shape[:-1])
    filled = history_mask & (last < length[..., None])
    return bar_ngrams_of(logits, history, filled, history, length, size)


def bar_ngrams_of(
    logits: Float[Array, "*rows V"],
    text: Int[Array, "*rows S"],
    text_mask: Bool[Array, "*rows S"],
    history: Int[Array, "*rows L"],
    length: Int[Array, "*rows"],
    size: int,
) -> Float[Array, "*rows V"]:
    """Bars each token that, after the last tokens of the history, completes an n-gram of a text.

    text_mask: True for its tokens, which are contiguous. The other arguments are those of
    `bar_repeated_ngrams`.
    """
    windows = text.shape[-1] - size + 1
    if windows < 1:
        return logits
    repeats = text_mask[..., :windows] & text_mask[..., size - 1 :]
    # The first size - 1 tokens of a window must be the last size - 1 before the next token.
    for i in range(size - 1):
        column = jnp.maximum(length[..., None] - (size - 1) + i, 0)
        suffix = jnp.take_along_axis(history, column, axis=-1)
        repeats &= text[..., i : i + windows] == suffix
    return jnp.where(_at_tokens(logits, text[..., size - 1 :], repeats), -jnp.inf, logits)


def bar_words(
    logits: Float[Array, "*rows V"],
    history: Int[Array, "*rows L"],
    history_mask: Bool[Array, "*rows L"],
    length: int | Int[Array, "*#rows"],
    prefixes: Int[Arr, "words prefix"],
    last: Int[Arr, " words"],
) -> Float[Array, "*rows V"]:
    """Bars each token that would complete one of some words of several tokens.

    prefixes: the words without their last tokens, `ANY` before shorter ones. last: their last
    tokens. A token beyond the vocabulary is ignored. The other arguments are those of
    `bar_repeated_ngrams`.
    """
    width = prefixes.shape[1]
    length = jnp.broadcast_to(length, history.shape[:-1])[..., None]
    columns = length - width + jnp.arange(width)
    inside = jnp.clip(columns, 0, history.shape[-1] - 1)
    before = jnp.take_along_axis(history, inside, axis=-1)
    real = jnp.take_along_axis(history_mask, inside, axis=-1) & (columns >= 0)
    prefixes = jnp.asarray(prefixes)
    same = (before[..., None, :] == prefixes) & real[..., None, :]
    completes = (same | (prefixes == ANY)).all(axis=-1)
    vocab_size = logits.shape[-1]
    completed = jnp.where(completes, last, vocab_size).reshape(-1, len(last))
    rows = jnp.arange(completed.shape[0])[:, None]
    barred = jnp.zeros((completed.shape[0], vocab_size), bool)
    barred = barred.at[rows, completed].set(True, mode="drop")
    return jnp.where(barred.reshape(logits.shape), -jnp.inf, logits)


def unless_all_barred(
    processed: Float[Array, "*rows V"], otherwise: Float[Array, "*rows V"]
) -> Float[Array, "*rows V"]:
    """`processed`, but `otherwise` in the rows in which every token is barred."""
    return jnp.where(processed.max(axis=-1, keepdims=True) == -jnp.inf, otherwise, processed)


def is_one_of(tokens: Int[Array, "*shape"], ids: Sequence[int]) -> Bool[Array, "*shape"]:
    """True at the tokens that are listed."""
    return jnp.isin(tokens, jnp.asarray(ids, tokens.dtype))


def bar_tokens(
    logits: Float[Array, "*rows V"], ids: Sequence[int], when: Bool[Array, "*#rows"]
) -> Float[Array, "*rows V"]:
    """Bars these tokens in the rows where `when` is True."""
    barred = is_one_of(jnp.arange(logits.shape[-1]), ids)
    return jnp.where(barred & when[..., None], -jnp.inf, logits)


def force_token(
    logits: Float[Array, "*rows V"], token: int, when: Bool[Array, "*#rows"]
) -> Float[Array, "*rows V"]:
    """Bars all tokens but one in the rows where `when` is True, and gives that one the logit 0."""
    forced = jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, -jnp.inf)
    return jnp.where(when[..., None], forced, logits)


def truncate_min_p(
    logits: Float[Array, "*rows V"], min_p: float | Float[Arr, ""]
) -> Float[Array, "*rows V"]:
    """Bars tokens less likely than `min_p` times the likeliest.

    Nguyen et al., arXiv 2407.01082.
    """
    threshold = logits.max(axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def _at_tokens(
    logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows L"], mask: Bool[Array, "*rows L"]
) -> Bool[Array, "*rows V"]:
    """True at the tokens whose mask is True."""
    vocab_size = logits.shape[-1]
    tokens = jnp.where(mask, tokens, vocab_size).reshape(-1, tokens.shape[-1])
    rows = jnp.arange(tokens.shape[0])[:, None]
    marks = jnp.zeros((tokens.shape[0], vocab_size), bool).at[rows, tokens].set(True, mode="drop")
    return marks.reshape(logits.shape)

"""Rules that reshape next-token logits: penalties, barred tokens, and cuts before sampling.

Pure functions of float32 logits `[*rows, V]`, which mean what transformers' processors of the
same purpose mean (`transformers.generation.logits_process`). A barred token has the logit
minus infinity. A row's history is its decoder's whole input, `[start ; prompt ; chosen]`, with
padding wherever `history_mask` is False.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends.selection import largest as largest
from pid_jax.backends.selection import likeliest as likeliest
from pid_jax.backends.selection import restrict_to_top_k as keep_top_k  # noqa: F401
from pid_jax.backends.selection import restrict_to_top_p as keep_top_p  # noqa: F401
from pid_jax.data.batching import Arr
from pid_jax.models.protocol import Config


def penalise_repetition(
    logits: Float[Array, "*rows V"],
    history: Int[Array, "*rows W"],
    history_mask: Bool[Array, "*rows W"],
    penalty: float | Float[Arr, ""],
) -> Float[Array, "*rows V"]:
    """Makes the tokens of the history less likely (if penalty > 1), however often they occurred.

    Positive logits are divided by the penalty, negative ones multiplied (Keskar et al., CTRL,
    arXiv 1909.05858, section 4.1, as transformers implements it).
    """
    seen = _at_tokens(logits, history, history_mask)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def bar_repeated_ngrams(
    logits: Float[Array, "*rows V"],
    history: Int[Array, "*rows W"],
    history_mask: Bool[Array, "*rows W"],
    length: int | Int[Array, "*#rows"],
    size: int,
) -> Float[Array, "*rows V"]:
    """Bars each token that would complete an n-gram, n = `size`, that the history already holds.

    length: how many columns of the history are filled, left padding counted: the next token
    belongs into column `length`. The mask of later columns is not read. (Paulus et al., arXiv
    1705.04304, section 2.5.)
    """
    windows = history.shape[-1] - size + 1
    if windows < 1:
        return logits
    length = jnp.broadcast_to(length, history.shape[:-1])[..., None]
    last = jnp.arange(size - 1, history.shape[-1])
    repeats = history_mask[..., :windows] & (last < length)
    # The first size - 1 tokens of a window must be the last size - 1 before the next token.
    for i in range(size - 1):
        column = jnp.maximum(length - (size - 1) + i, 0)
        suffix = jnp.take_along_axis(history, column, axis=-1)
        repeats &= history[..., i : i + windows] == suffix
    return jnp.where(_at_tokens(logits, history[..., size - 1 :], repeats), -jnp.inf, logits)


def unless_all_barred(
    ruled: Float[Array, "*rows V"], otherwise: Float[Array, "*rows V"]
) -> Float[Array, "*rows V"]:
    """`ruled`, but `otherwise` in the rows where that bars every token: there the rules yield."""
    return jnp.where(ruled.max(axis=-1, keepdims=True) == -jnp.inf, otherwise, ruled)


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
    """Bars all tokens but one in the rows where `when` is True, and takes that one for certain."""
    forced = jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, -jnp.inf)
    return jnp.where(when[..., None], forced, logits)


def force_first_and_last(
    logits: Float[Array, "*rows V"],
    config: Config,
    is_first: Bool[Array, "*#rows"],
    is_last: Bool[Array, "*#rows"],
) -> Float[Array, "*rows V"]:
    """Forces the tokens that a model's configuration says outputs begin and end with.

    is_first: whether nothing but the start token stands before the next token; after a prompt
    transformers forces nothing. is_last: whether the next token is the last that may come.
    """
    if config.forced_bos_token_id is not None:
        logits = force_token(logits, config.forced_bos_token_id, is_first)
    if config.forced_eos_token_id is not None:
        logits = force_token(logits, config.forced_eos_token_id, is_last)
    return logits


def _at_tokens(
    logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows W"], mask: Bool[Array, "*rows W"]
) -> Bool[Array, "*rows V"]:
    """True at the tokens whose mask is True."""
    vocab_size = logits.shape[-1]
    tokens = jnp.where(mask, tokens, vocab_size).reshape(-1, tokens.shape[-1])
    rows = jnp.arange(tokens.shape[0])[:, None]
    marks = jnp.zeros((tokens.shape[0], vocab_size), bool).at[rows, tokens].set(True, mode="drop")
    return marks.reshape(logits.shape)

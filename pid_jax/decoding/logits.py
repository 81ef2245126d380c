"""Pure functions that change next-token logits: penalties, barred tokens, truncation of sampling.

They take float32 logits `[*rows, V]` and compute what the logits processors of transformers with
the same purpose compute (`transformers.generation.logits_process`). A barred token has the logit
minus infinity. A row's history is the whole input of its decoder, `[start ; prompt ; output]`,
with padding wherever `history_mask` is False. `pid_jax.decoding.logits_processors` applies these
functions to the options of a call.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.data.batching import Arr
from pid_jax.models.protocol import Config

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
    tokens. A token beyond the vocabulary bars nothing. The other arguments are those of
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


def force_first_and_last(
    logits: Float[Array, "*rows V"],
    config: Config,
    is_first: Bool[Array, "*#rows"],
    is_last: Bool[Array, "*#rows"],
) -> Float[Array, "*rows V"]:
    """Forces the first and the last token of outputs, as a model's configuration names them.

    is_first: True where only the start token precedes the next token. After a prompt transformers
    forces nothing. is_last: True where the next token reaches the greatest length.
    """
    if config.forced_bos_token_id is not None:
        logits = force_token(logits, config.forced_bos_token_id, is_first)
    if config.forced_eos_token_id is not None:
        logits = force_token(logits, config.forced_eos_token_id, is_last)
    return logits


def truncate_top_k(logits: Float[Array, "*rows V"], k: int) -> Float[Array, "*rows V"]:
    """Bars all tokens that are less likely than the k-th likeliest.

    Fan et al., arXiv 1805.04833, section 5.4.
    """
    vocab_size = logits.shape[-1]
    likeliest, _ = jax.lax.top_k(logits.reshape(-1, vocab_size), min(k, vocab_size))
    # Their minimum, not the last: sliced, XLA turns top_k into a whole sort, 60 times as slow.
    threshold = likeliest.min(axis=-1).reshape(*logits.shape[:-1], 1)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def truncate_top_p(
    logits: Float[Array, "*rows V"], p: float | Float[Arr, ""]
) -> Float[Array, "*rows V"]:
    """Bars all but the fewest likeliest tokens whose probabilities sum to at least p.

    At least one remains, and so does every token as likely as the least likely that remains.
    (Holtzman et al., nucleus sampling, arXiv 1904.09751, section 3.1.)

    Bisection over the 2^32 values of a float32 finds the least logit that remains. For 30 rows of
    32,128 logits on two cores that takes 8 ms, and sorting takes 220 ms.
    """
    keys = _ordered_integers(logits)
    probabilities = jax.nn.softmax(logits, axis=-1)

    def halve(
        _: Int[Array, ""], bounds: tuple[Int[Array, "*rows 1"], Int[Array, "*rows 1"]]
    ) -> tuple[Int[Array, "*rows 1"], Int[Array, "*rows 1"]]:
        barred, remaining = bounds
        middle = (barred >> 1) + (remaining >> 1) + (barred & remaining & 1)
        mass = jnp.where(keys <= middle, probabilities, 0.0).sum(axis=-1, keepdims=True)
        too_much = mass > 1 - p
        return jnp.where(too_much, barred, middle), jnp.where(too_much, middle, remaining)

    greatest = keys.max(axis=-1, keepdims=True)
    bounds = (jnp.full_like(greatest, jnp.iinfo(jnp.int32).min), greatest)
    _, threshold = jax.lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(keys < threshold, -jnp.inf, logits)


def truncate_min_p(
    logits: Float[Array, "*rows V"], min_p: float | Float[Arr, ""]
) -> Float[Array, "*rows V"]:
    """Bars tokens less likely than `min_p` times the likeliest.

    Nguyen et al., arXiv 2407.01082.
    """
    threshold = logits.max(axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def largest(
    values: Float[Array, "*rows N"], count: int, group: int = 128
) -> tuple[Float[Array, "*rows C"], Int[Array, "*rows C"]]:
    """`jax.lax.top_k`, faster where `values` is long.

    The `count` largest values lie in the `count` groups with the largest maxima. One pass finds
    those maxima; what remains to be sorted is small.
    """
    groups = -(-values.shape[-1] // group)
    if groups <= 2 * count:
        best, index = jax.lax.top_k(values, count)
        return best, index
    rows = values.shape[:-1]
    padding = [(0, 0)] * len(rows) + [(0, groups * group - values.shape[-1])]
    grouped = jnp.pad(values, padding, constant_values=-jnp.inf).reshape(*rows, groups, group)
    _, likely = jax.lax.top_k(grouped.max(axis=-1), count)
    likely = jnp.sort(likely, axis=-1)  # so that equal values come in order of their indices
    few = jnp.take_along_axis(grouped, likely[..., None], axis=-2).reshape(*rows, count * group)
    best, index = jax.lax.top_k(few, count)
    index = jnp.take_along_axis(likely, index // group, axis=-1) * group + index % group
    return best, jnp.minimum(index, values.shape[-1] - 1)  # the padding ties with -inf


def likeliest(logits: Float[Array, "*rows V"]) -> Int[Array, "*rows"]:
    """The first of the likeliest tokens; `argmax` takes ten times as long on a CPU."""
    return largest(logits, 1)[1][..., 0]


def _at_tokens(
    logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows L"], mask: Bool[Array, "*rows L"]
) -> Bool[Array, "*rows V"]:
    """True at the tokens whose mask is True."""
    vocab_size = logits.shape[-1]
    tokens = jnp.where(mask, tokens, vocab_size).reshape(-1, tokens.shape[-1])
    rows = jnp.arange(tokens.shape[0])[:, None]
    marks = jnp.zeros((tokens.shape[0], vocab_size), bool).at[rows, tokens].set(True, mode="drop")
    return marks.reshape(logits.shape)


def _ordered_integers(values: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """int32 in the order of these float32: a negative float's magnitude bits count downwards."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

"""Rules that reshape next-token logits: penalties, barred tokens, and cuts before sampling.

Pure functions of float32 logits `[*rows, V]`, which mean what transformers' processors of the
same purpose mean (`transformers.generation.logits_process`). A barred token has the logit
minus infinity. A row's history is its decoder's whole input, `[start ; prompt ; chosen]`, with
padding wherever `history_mask` is False.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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


def keep_top_k(logits: Float[Array, "*rows V"], k: int) -> Float[Array, "*rows V"]:
    """Bars all but the k likeliest tokens, and those as likely as the last of them.

    Fan et al., arXiv 1805.04833, section 5.4.
    """
    vocab_size = logits.shape[-1]
    likeliest, _ = jax.lax.top_k(logits.reshape(-1, vocab_size), min(k, vocab_size))
    # Their minimum, not the last: sliced, XLA turns top_k into a whole sort, 60 times as slow.
    threshold = likeliest.min(axis=-1).reshape(*logits.shape[:-1], 1)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def keep_top_p(
    logits: Float[Array, "*rows V"], p: float | Float[Arr, ""]
) -> Float[Array, "*rows V"]:
    """Bars all but the fewest likeliest tokens whose probabilities sum to at least p.

    At least one stays, and so does every token as likely as the least likely that stays.
    (Holtzman et al., nucleus sampling, arXiv 1904.09751, section 3.1.)

    No sort: the least logit that stays is found by bisection, over the 2^32 values that a
    float32 has. For 30 rows of 32,128 logits on two cores that takes 8 ms, sorting 220 ms.
    """
    keys = _ordered_integers(logits)
    probabilities = jax.nn.softmax(logits, axis=-1)

    def halve(
        _: Int[Array, ""], bounds: tuple[Int[Array, "*rows 1"], Int[Array, "*rows 1"]]
    ) -> tuple[Int[Array, "*rows 1"], Int[Array, "*rows 1"]]:
        goes, stays = bounds
        middle = (goes >> 1) + (stays >> 1) + (goes & stays & 1)
        mass = jnp.where(keys <= middle, probabilities, 0.0).sum(axis=-1, keepdims=True)
        enough = mass > 1 - p
        return jnp.where(enough, goes, middle), jnp.where(enough, middle, stays)

    greatest = keys.max(axis=-1, keepdims=True)
    bounds = (jnp.full_like(greatest, jnp.iinfo(jnp.int32).min), greatest)
    _, threshold = jax.lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(keys < threshold, -jnp.inf, logits)


def largest(
    values: Float[Array, "*rows N"], count: int, group: int = 128
) -> tuple[Float[Array, "*rows C"], Int[Array, "*rows C"]]:
    """`jax.lax.top_k`, faster where `values` is long.

    The `count` largest values lie in the `count` groups with the largest maxima. One pass finds
    those maxima; what remains to be sorted is small.
    """
    groups = -(-values.shape[-1] // group)
    if groups <= 2 * count:
        found, places = jax.lax.top_k(values, count)
        return found, places
    rows = values.shape[:-1]
    padding = [(0, 0)] * len(rows) + [(0, groups * group - values.shape[-1])]
    grouped = jnp.pad(values, padding, constant_values=-jnp.inf).reshape(*rows, groups, group)
    _, likely = jax.lax.top_k(grouped.max(axis=-1), count)
    likely = jnp.sort(likely, axis=-1)  # so that equal values come in order of their places
    few = jnp.take_along_axis(grouped, likely[..., None], axis=-2).reshape(*rows, count * group)
    found, places = jax.lax.top_k(few, count)
    places = jnp.take_along_axis(likely, places // group, axis=-1) * group + places % group
    return found, jnp.minimum(places, values.shape[-1] - 1)  # the padding ties with -inf


def likeliest(logits: Float[Array, "*rows V"]) -> Int[Array, "*rows"]:
    """The first of the likeliest tokens; `argmax` takes ten times as long on a CPU."""
    return largest(logits, 1)[1][..., 0]


def _at_tokens(
    logits: Float[Array, "*rows V"], tokens: Int[Array, "*rows W"], mask: Bool[Array, "*rows W"]
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

"""Beam search over documents and prompts at once, prompt by prompt as transformers does it.

The state and the choice of tokens only: running the model, and reordering its cache by the
parents that `choose` returns, is the caller's. The rules are those of `generate(num_beams=K)`
in transformers 5 (`GenerationMixin._beam_search`): 2K candidates a step (more where several
tokens end an output), of which the best K that have not ended run on and those among the first
K that have ended enter a pool of K finished sequences, ranked by sum of log-probabilities /
length ** length_penalty.

One thing differs. Where a constraint leaves a prompt fewer than K continuations, transformers
fills up with copies of its first beam that score -1e9, and such a copy may finish and count.
Here the missing beams score -inf and never finish: the pool holds fewer sequences, the best
ones are the same, and a prompt without a beam left is done. Where nothing has finished then,
transformers returns no tokens at the score -1e9, or a sequence that has not ended; the pool here
is empty. The same score outranks in transformers what a length penalty far below 0 ranks lower
still; here what has finished counts, whatever its rank.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from pid_jax.data.batching import Arr
from pid_jax.decoding import rules, token_logprobs
from pid_jax.decoding.token_logprobs import TokenLogprobs
from pid_jax.errors import UserError

EarlyStopping = bool | Literal["never"]


class Finished(NamedTuple):
    """The best finished sequences of every prompt, in order of rank."""

    tokens: Int[Array, "B P K T"]
    """Padded after `lengths`."""
    lengths: Int[Array, "B P K"]
    """How many tokens were chosen, the end token among them; 0 where nothing was found."""
    ranks: Float[Array, "B P K"]
    """What transformers calls `sequences_scores`: the sum of the log-probabilities as processed,
    over length ** length_penalty; -inf where nothing was found."""
    log_probabilities: Float[Array, "B P K"]
    """The sum of the model's own log-probabilities; -inf where nothing was found, NaN where the
    model gives none."""
    logprobs: TokenLogprobs | None
    """Of `tokens`, where they are asked for."""


class Beams(NamedTuple):
    """K running sequences of every prompt, the likeliest first, and K finished ones."""

    tokens: Int[Array, "B P K T"]
    """Padded after the tokens chosen so far."""
    scores: Float[Array, "B P K"]
    """The sum of the log-probabilities as processed; -inf for a beam that does not run."""
    log_probabilities: Float[Array, "B P K"]
    finished: Finished
    done: Bool[Array, "B P"]
    """True once nothing of the prompt changes any more."""
    logprobs: TokenLogprobs | None
    """Of `tokens`, where they are asked for."""


class _Candidates(NamedTuple):
    """The likeliest continuations of every prompt, the likeliest first."""

    parents: Int[Array, "B P C"]
    tokens: Int[Array, "B P C"]
    scores: Float[Array, "B P C"]
    log_probabilities: Float[Array, "B P C"]
    logprobs: TokenLogprobs | None
    """Of the one token."""


def start(
    active: Bool[Array, "B P"],
    width: int,
    room: int,
    pad_token_id: int,
    logprobs: TokenLogprobs | None = None,
) -> Beams:
    """One empty sequence runs for every active prompt; the others are done.

    width: the number of beams K. room: the most tokens T that will ever be chosen. logprobs:
    empty ones `[B, P, K, T]` to be filled; None: they are not kept.
    """
    places = (*active.shape, width)
    tokens = jnp.full((*places, room), pad_token_id, jnp.int32)
    nothing = jnp.full(places, -jnp.inf, jnp.float32)
    first = jnp.where(jnp.arange(width) == 0, 0.0, nothing)
    finished = Finished(tokens, jnp.zeros(places, jnp.int32), nothing, nothing, logprobs)
    return Beams(tokens, first, first, finished, ~active, logprobs)


def choose(
    beams: Beams,
    logits: Float[Array, "B P J V"],
    step: Int[Array, ""],
    *,
    process: Callable[[Float[Array, "B P J V"]], Float[Array, "B P J V"]],
    ends: Callable[[Int[Array, "B P C"], Int[Array, "B P C"]], Bool[Array, "B P C"]],
    end_tokens: int,
    max_new_tokens: int | Int[Arr, ""],
    length_penalty: float | Float[Arr, ""],
    early_stopping: EarlyStopping,
    pad_token_id: int,
) -> tuple[Beams, Int[Array, "B P K"], Int[Array, "B P K"]]:
    """Extends every prompt that is not done by one token.

    logits: of the running sequences, as the model gives them, float32; J is K, or 1 at the
    first step, when only one beam of each prompt runs.
    step: how many tokens were chosen before.
    process: changes log-probabilities before they are added up (minimum length, penalties,
    constraints); -inf bars a token.
    ends: whether candidates end their sequences, given each candidate's parent (an index into
    the K beams before this step) and its token.
    end_tokens: how many tokens E end a sequence. Of (1 + E) K candidates K have not ended by one.
    length_penalty: above 0 it favours long sequences, below 0 short ones.
    early_stopping: True ends a prompt once K sequences have finished. False also waits until
    the likeliest running sequence would rank no higher than all of them if it ended here,
    "never" until it would not at whichever length favours it, were its score to stay.
    Returns the beams, each new beam's parent, and each new beam's token, to be fed back. A
    prompt that was done keeps its beams: its parents are they themselves, its tokens padding.
    """
    width = beams.tokens.shape[2]
    length = step + 1
    at_limit = length >= max_new_tokens

    def rank(scores: Float[Array, "B P N"], length: int | Int[Array, ""]) -> Float[Array, "B P N"]:
        # Every sum of log-probabilities has a finite rank, whatever the penalty.
        most = jnp.finfo(jnp.float32)
        divisor = jnp.asarray(length, jnp.float32) ** length_penalty
        ranks = scores / jnp.clip(divisor, most.tiny, most.max)
        return jnp.where(scores == -jnp.inf, scores, jnp.clip(ranks, most.min, most.max))

    count = max(2, 1 + end_tokens) * width
    candidates = _likeliest(beams, logits, process, count)
    ended = ends(candidates.parents, candidates.tokens) | at_limit
    among_best = jnp.arange(count) < width
    finished = _admit(
        beams,
        candidates,
        jnp.where(ended & among_best, rank(candidates.scores, length), -jnp.inf),
        step,
    )
    scores, kept = jax.lax.top_k(jnp.where(ended, -jnp.inf, candidates.scores), width)
    parents, tokens = _take(candidates.parents, kept), _take(candidates.tokens, kept)

    settled = finished.ranks[..., -1] > -jnp.inf
    if early_stopping is not True:
        hoped_length = length
        if early_stopping == "never":
            hoped_length = jnp.where(length_penalty > 0, max_new_tokens, length)
        settled &= rank(scores[..., :1], hoped_length)[..., 0] <= finished.ranks[..., -1]
    nothing_runs = scores[..., 0] == -jnp.inf
    broken = jnp.isnan(candidates.log_probabilities).any(axis=-1)
    known = jnp.where(broken[..., None], jnp.nan, finished.log_probabilities)
    finished = finished._replace(log_probabilities=known)
    done = at_limit | nothing_runs | settled | broken

    advanced = Beams(
        _write(_take(beams.tokens, parents), step, tokens),
        scores,
        _take(candidates.log_probabilities, kept),
        finished,
        done,
        jax.tree.map(
            lambda old, new: _write(_take(old, parents), step, _take(new, kept)),
            beams.logprobs,
            candidates.logprobs,
        ),
    )

    def unless_done(old: Array, new: Array) -> Array:
        return jnp.where(jnp.expand_dims(beams.done, tuple(range(2, old.ndim))), old, new)

    return (
        jax.tree.map(unless_done, beams, advanced),
        unless_done(jnp.broadcast_to(jnp.arange(width), parents.shape), parents),
        unless_done(jnp.full_like(tokens, pad_token_id), tokens),
    )


def _likeliest(
    beams: Beams,
    logits: Float[Array, "B P J V"],
    process: Callable[[Float[Array, "B P J V"]], Float[Array, "B P J V"]],
    count: int,
) -> _Candidates:
    documents, prompts, sources, vocab_size = logits.shape
    width = beams.tokens.shape[2]
    if count > vocab_size:
        raise UserError(
            f"num_beams={width} is too many for a vocabulary of {vocab_size} tokens: it must be "
            f"at most {vocab_size // (count // width)}"
        )
    flat = (documents, prompts, sources * vocab_size)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    totals = process(logits - normaliser[..., None]) + beams.scores[:, :, :sources, None]
    scores, places = rules.largest(totals.reshape(flat), count)
    parents = places // vocab_size
    # Looked up in the logits, so that log-probabilities as large need not be kept for it.
    log_probabilities = _take(logits.reshape(flat), places) - _take(normaliser, parents)
    logprobs = None
    if beams.logprobs is not None:
        top, top_tokens = token_logprobs.likeliest(logits, beams.logprobs.top.shape[-2])
        logprobs = TokenLogprobs(log_probabilities, _take(top, parents), _take(top_tokens, parents))
    return _Candidates(
        parents,
        places % vocab_size,
        scores,
        _take(beams.log_probabilities, parents) + log_probabilities,
        logprobs,
    )


def _admit(
    beams: Beams, candidates: _Candidates, ranks: Float[Array, "B P C"], step: Int[Array, ""]
) -> Finished:
    """The best K of the finished sequences and the candidates; -inf ranks stay outside."""
    pool = beams.finished
    width = beams.tokens.shape[2]
    enters = ranks > -jnp.inf
    best_ranks, order = jax.lax.top_k(jnp.concatenate([pool.ranks, ranks], axis=-1), width)

    def select(old: Array, new: Array) -> Array:
        return _take(jnp.concatenate([old, new], axis=2), order)

    # A new sequence is one of the K running ones and a token: wider copies are not needed.
    old_places = jnp.broadcast_to(jnp.arange(width), pool.ranks.shape)
    places = select(old_places, width + candidates.parents)

    def grown(of_pool: Array, of_beams: Array, of_candidates: Array) -> Array:
        prefixes = _take(jnp.concatenate([of_pool, of_beams], axis=2), places)
        # A sequence of the pool has padding, or nothing, where the new ones get their last token.
        column = jax.lax.dynamic_index_in_dim(of_pool, step, of_pool.ndim - 1, keepdims=False)
        return _write(prefixes, step, select(column, of_candidates))

    return Finished(
        tokens=grown(pool.tokens, beams.tokens, candidates.tokens),
        lengths=select(pool.lengths, jnp.where(enters, step + 1, 0)),
        ranks=best_ranks,
        log_probabilities=select(
            pool.log_probabilities, jnp.where(enters, candidates.log_probabilities, -jnp.inf)
        ),
        logprobs=jax.tree.map(grown, pool.logprobs, beams.logprobs, candidates.logprobs),
    )


def best(beams: Beams, count: int) -> Finished:
    """The `count` best finished sequences of each prompt; `count` is at most K.

    Complete once `done` is True everywhere.
    """
    return jax.tree.map(lambda leaf: leaf[:, :, :count], beams.finished)


def _take(values: Array, places: Int[Array, "*rows N"]) -> Array:
    """The entries of `[*rows, M, ...]` at `places` along the axis M."""
    index = places.reshape(*places.shape, *[1] * (values.ndim - places.ndim))
    return jnp.take_along_axis(values, index, axis=places.ndim - 1)


def _write(
    sequences: Shaped[Array, "B P K *N T"],
    column: Int[Array, ""],
    values: Shaped[Array, "B P K *N"],
) -> Shaped[Array, "B P K *N T"]:
    last = sequences.ndim - 1
    return jax.lax.dynamic_update_index_in_dim(sequences, values, column, axis=last)

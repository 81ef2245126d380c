"""Beam search over documents and prompts at once, with the rules of transformers.

The rules are those of `generate(num_beams=W)` in transformers 5 (`GenerationMixin._beam_search`).
A step considers 2W candidates (more where several tokens end an output). The best W that have not
ended run on. Those among the first W that have ended enter a pool of W finished sequences, ranked
by the sum of log-probabilities / length ** length_penalty.

One thing differs. Where a constraint leaves a prompt fewer than W continuations, transformers
fills up with copies of its first beam that score -1e9, and such a copy may finish and count.
Here the missing beams score -inf and never finish. The pool has fewer sequences, the best ones
are the same, and a prompt without a running beam has finished. Where nothing has finished then,
transformers returns no tokens at the score -1e9, or a sequence that has not ended, and the pool
here is empty. The same score outranks in transformers what a length penalty far below 0 ranks
lower still. Here a finished sequence counts, whatever its rank.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from pid_jax.backends.selection import largest
from pid_jax.decoding import token_logprobs
from pid_jax.decoding.search import BestOutputs, SearchStep, Selection
from pid_jax.decoding.token_logprobs import TokenLogprobs
from pid_jax.errors import UserError

EarlyStopping = bool | Literal["never"]


class Pool(NamedTuple):
    """The best finished sequences of every prompt, in order of rank."""

    tokens: Int[Array, "B P W T"]
    """Padded after `lengths`."""
    lengths: Int[Array, "B P W"]
    """The number of selected tokens, the end token included; 0 for no sequence."""
    ranks: Float[Array, "B P W"]
    """What transformers calls `sequences_scores`: the sum of the log-probabilities as processed,
    over length ** length_penalty; -inf for no sequence."""
    log_probabilities: Float[Array, "B P W"]
    """The sum of the model's own log-probabilities; -inf for no sequence, NaN where the model
    gives none."""
    logprobs: TokenLogprobs | None
    """Of `tokens`."""


class Beams(NamedTuple):
    """W running sequences of every prompt, the likeliest first, and the finished ones."""

    tokens: Int[Array, "B P W T"]
    """Padded after the tokens selected so far."""
    scores: Float[Array, "B P W"]
    """The sum of the log-probabilities as processed; -inf for a beam that does not run."""
    log_probabilities: Float[Array, "B P W"]
    pool: Pool
    finished: Bool[Array, "B P"]
    """True once nothing of the prompt changes any more."""
    logprobs: TokenLogprobs | None
    """Of `tokens`."""


class _Candidates(NamedTuple):
    """The likeliest C continuations of every prompt, the likeliest first."""

    parents: Int[Array, "B P C"]
    tokens: Int[Array, "B P C"]
    scores: Float[Array, "B P C"]
    log_probabilities: Float[Array, "B P C"]
    logprobs: TokenLogprobs | None
    """Of the one token."""


@flax.struct.dataclass
class BeamSearch:
    """W sequences of every prompt run side by side, all against one encoding of the document."""

    length_penalty: Any
    """A float32 scalar. Above 0 it favours long sequences, below 0 short ones."""
    num_beams: int = flax.struct.field(pytree_node=False)
    early_stopping: EarlyStopping = flax.struct.field(pytree_node=False, default=False)
    """True: a prompt has finished once W sequences have. False: it also waits until the likeliest
    running sequence would rank no higher than any of them if it ended now. "never": until it could
    not outrank them at any length, if its score did not change."""

    @property
    def beams(self) -> int:
        """W."""
        return self.num_beams

    def start(
        self,
        active: Bool[Array, "B P"],
        length: int,
        pad_token_id: int,
        logprobs: TokenLogprobs | None,
    ) -> Beams:
        """See `Search.start`. One empty sequence of each active prompt runs."""
        shape = (*active.shape, self.num_beams)
        tokens = jnp.full((*shape, length), pad_token_id, jnp.int32)
        nothing = jnp.full(shape, -jnp.inf, jnp.float32)
        first = jnp.where(jnp.arange(self.num_beams) == 0, 0.0, nothing)
        pool = Pool(tokens, jnp.zeros(shape, jnp.int32), nothing, nothing, logprobs)
        return Beams(tokens, first, first, pool, ~active, logprobs)

    def select(
        self, sequences: Beams, logits: Float[Array, "B P R V"], step: SearchStep
    ) -> Selection:
        """See `Search.select`. The logits processors process log-probabilities here.

        A finished prompt does not change: its beams continue themselves with padding.
        """
        beams = sequences
        width = self.num_beams
        length = step.step + 1
        at_limit = length >= step.max_new_tokens
        count = max(2, 1 + step.end_token_count) * width
        candidates = _likeliest(beams, logits, step.process, count)
        ended = step.ends(candidates.parents, candidates.tokens) | at_limit[..., None]
        among_best = jnp.arange(count) < width
        ranks = jnp.where(ended & among_best, self._rank(candidates.scores, length), -jnp.inf)
        pool = _admit(beams, candidates, ranks, step.step)
        scores, running = jax.lax.top_k(jnp.where(ended, -jnp.inf, candidates.scores), width)
        parents, tokens = _take(candidates.parents, running), _take(candidates.tokens, running)

        settled = pool.ranks[..., -1] > -jnp.inf
        if self.early_stopping is not True:
            best_length = length
            if self.early_stopping == "never":
                longest = step.max_new_tokens[..., None]
                best_length = jnp.where(self.length_penalty > 0, longest, length)
            settled &= self._rank(scores[..., :1], best_length)[..., 0] <= pool.ranks[..., -1]
        nothing_runs = scores[..., 0] == -jnp.inf
        broken = jnp.isnan(candidates.log_probabilities).any(axis=-1)
        log_probabilities = jnp.where(broken[..., None], jnp.nan, pool.log_probabilities)
        pool = pool._replace(log_probabilities=log_probabilities)

        extended = Beams(
            _write(_take(beams.tokens, parents), step.step, tokens),
            scores,
            _take(candidates.log_probabilities, running),
            pool,
            at_limit | nothing_runs | settled | broken,
            jax.tree.map(
                lambda old, new: _write(_take(old, parents), step.step, _take(new, running)),
                beams.logprobs,
                candidates.logprobs,
            ),
        )

        def unless_finished(old: Array, new: Array) -> Array:
            finished = jnp.expand_dims(beams.finished, tuple(range(2, old.ndim)))
            return jnp.where(finished, old, new)

        return Selection(
            jax.tree.map(unless_finished, beams, extended),
            unless_finished(jnp.broadcast_to(jnp.arange(width), parents.shape), parents),
            unless_finished(jnp.full_like(tokens, step.pad_token_id), tokens),
        )

    def finished(self, sequences: Beams) -> Bool[Array, "B P"]:
        """See `Search.finished`."""
        return sequences.finished

    def best(self, sequences: Beams, count: int) -> BestOutputs:
        """See `Search.best`. Complete once `finished` is True everywhere; `count` is at most W."""
        pool = sequences.pool
        outputs = pool.tokens, pool.lengths, pool.log_probabilities, pool.logprobs
        return BestOutputs(*jax.tree.map(lambda leaf: leaf[:, :, :count], outputs))

    def _rank(
        self, scores: Float[Array, "B P C"], length: Int[Array, ""] | Int[Array, "B P 1"]
    ) -> Float[Array, "B P C"]:
        """Every sum of log-probabilities has a finite rank, whatever the penalty."""
        most = jnp.finfo(jnp.float32)
        divisor = jnp.asarray(length, jnp.float32) ** self.length_penalty
        ranks = scores / jnp.clip(divisor, most.tiny, most.max)
        return jnp.where(scores == -jnp.inf, scores, jnp.clip(ranks, most.min, most.max))


def _likeliest(
    beams: Beams,
    logits: Float[Array, "B P R V"],
    process: Callable[[Float[Array, "B P R V"]], Float[Array, "B P R V"]],
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
    scores, index = largest(totals.reshape(flat), count)
    parents = index // vocab_size
    # Read from the logits, so that no array of log-probabilities of that size is needed.
    log_probabilities = _take(logits.reshape(flat), index) - _take(normaliser, parents)
    logprobs = None
    if beams.logprobs is not None:
        top, top_tokens = token_logprobs.likeliest(logits, beams.logprobs.top.shape[-2])
        logprobs = TokenLogprobs(log_probabilities, _take(top, parents), _take(top_tokens, parents))
    return _Candidates(
        parents,
        index % vocab_size,
        scores,
        _take(beams.log_probabilities, parents) + log_probabilities,
        logprobs,
    )


def _admit(
    beams: Beams, candidates: _Candidates, ranks: Float[Array, "B P C"], step: Int[Array, ""]
) -> Pool:
    """The W best of the pool and the candidates, except those with a rank of -inf."""
    pool = beams.pool
    width = beams.tokens.shape[2]
    enters = ranks > -jnp.inf
    best_ranks, order = jax.lax.top_k(jnp.concatenate([pool.ranks, ranks], axis=-1), width)

    def select(old: Array, new: Array) -> Array:
        return _take(jnp.concatenate([old, new], axis=2), order)

    # A new sequence is one of the W running ones and a token: wider copies are not needed.
    old_index = jnp.broadcast_to(jnp.arange(width), pool.ranks.shape)
    index = select(old_index, width + candidates.parents)

    def grown(of_pool: Array, of_beams: Array, of_candidates: Array) -> Array:
        prefixes = _take(jnp.concatenate([of_pool, of_beams], axis=2), index)
        # A sequence of the pool has padding, or nothing, in the column of the new last token.
        column = jax.lax.dynamic_index_in_dim(of_pool, step, of_pool.ndim - 1, keepdims=False)
        return _write(prefixes, step, select(column, of_candidates))

    return Pool(
        tokens=grown(pool.tokens, beams.tokens, candidates.tokens),
        lengths=select(pool.lengths, jnp.where(enters, step + 1, 0)),
        ranks=best_ranks,
        log_probabilities=select(
            pool.log_probabilities, jnp.where(enters, candidates.log_probabilities, -jnp.inf)
        ),
        logprobs=jax.tree.map(grown, pool.logprobs, beams.logprobs, candidates.logprobs),
    )


def _take(values: Array, index: Int[Array, "*rows C"]) -> Array:
    """The entries of `[*rows, A, ...]` at `index` along the axis A."""
    expanded = index.reshape(*index.shape, *[1] * (values.ndim - index.ndim))
    return jnp.take_along_axis(values, expanded, axis=index.ndim - 1)


def _write(
    sequences: Shaped[Array, "B P W *top T"],
    column: Int[Array, ""],
    values: Shaped[Array, "B P W *top"],
) -> Shaped[Array, "B P W *top T"]:
    last = sequences.ndim - 1
    return jax.lax.dynamic_update_index_in_dim(sequences, values, column, axis=last)

"""Drives the decoding loop, batch by batch: compiled programs, compaction, partial results.

After a few steps most prompts of dialogue state tracking have ended with `none`. A step costs
what its batch is wide, so once at most half of the prompts still run, in every document, they
are moved together into a batch half as wide: `ladder` names the sizes. What is computed for
each prompt is the same.
"""

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Bool, Float, Int, UInt32

from pid_jax.data.batching import Arr, Batch, bucket, bucket_below
from pid_jax.decoding import beam, loop
from pid_jax.decoding.beam import Beams
from pid_jax.decoding.options import Controls, Strategy
from pid_jax.decoding.state import State
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.programs import Programs
from pid_jax.prompt_in_decoder import EncodedDocuments

Compaction = bool | Literal["auto"]

FEWEST_ROWS = 8
"""Batches of so few rows are not made smaller: a step then costs its weights, not its rows."""
REPAYING_BATCHES = 8
""""auto" compiles a smaller program once so many batches of a call may use it."""

_begin = jax.jit(loop.begin, static_argnums=0, static_argnames=("strategy", "room"))
_advance = jax.jit(
    loop.advance, static_argnums=0, static_argnames=("strategy",), donate_argnames=("state",)
)
_keep = jax.jit(loop.keep)


@dataclass
class DecodingReport:
    """What decoding did, added up over batches. Give one to `PidModel.generate` to have it filled.

    A row is one output that is being made: a prompt, or one of a prompt's beams.
    """

    batches: int = 0
    documents: int = 0
    prompts: int = 0
    tokens: int = 0
    """Tokens chosen, end tokens included; of beam search, the best output's."""
    decoder_calls: int = 0
    """Calls of the decoder after the one that reads the prompts."""
    row_steps: int = 0
    """Rows computed, summed over decoder calls; padding too."""
    row_steps_saved: int = 0
    """Rows not computed because prompts that had ended were dropped."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of those drafted, how many greedy decoding would have chosen."""

    def __str__(self) -> str:
        lines = [
            f"{self.documents:,} documents, {self.prompts:,} prompts in {self.batches:,} batches: "
            f"{self.tokens:,} tokens in {self.decoder_calls:,} decoder calls"
        ]
        rows = self.row_steps + self.row_steps_saved
        if self.row_steps_saved:
            lines.append(
                f"dropping ended prompts saved {self.row_steps_saved:,} of {rows:,} row steps "
                f"({self.row_steps_saved / rows:.0%})"
            )
        if self.drafted_tokens:
            lines.append(
                f"{self.accepted_tokens:,} of {self.drafted_tokens:,} drafted tokens were right "
                f"({self.accepted_tokens / self.drafted_tokens:.0%})"
            )
        return "\n".join(lines)


class Outputs(NamedTuple):
    """What was decoded, on the host; N outputs for each prompt, the best first."""

    tokens: Int[np.ndarray, "B P N T"]
    lengths: Int[np.ndarray, "B P N"]
    """How many of `tokens` were chosen, the end token among them; 0 for none."""
    scores: Float[np.ndarray, "B P N"]
    done: Bool[np.ndarray, "B P"]
    drafted: Int[np.ndarray, "B P"]
    accepted: Int[np.ndarray, "B P"]


@dataclass
class Job:
    """One batch and how its outputs are to be chosen."""

    batch: Batch
    active: Bool[np.ndarray, "B P"]
    """False for the empty places of a ragged batch."""
    strategy: Strategy
    controls: Controls
    returned: int = 1
    """Outputs per prompt (N)."""
    roots: Int[np.ndarray, "B P"] | None = None
    keys: UInt32[np.ndarray, "B P 2"] | None = None
    compact: Compaction = "auto"
    batches_left: int = 0
    """How many batches of the same call come after this one."""
    steps_at_once: int | None = None
    """For partial results: steps between two of them."""
    report: DecodingReport = field(default_factory=DecodingReport)

    @property
    def room(self) -> int:
        """The most tokens to be chosen, as the programs know it."""
        return bucket(int(self.controls.max_new_tokens))


def ladder(documents: int, prompts: int, rows_each: int) -> list[tuple[int, int]]:
    """The ever smaller (documents, prompts) that a batch is moved to, the first its own.

    Prompts are halved until every document has one, then documents; not below `FEWEST_ROWS`,
    where each prompt takes `rows_each`.
    """
    sizes = [(documents, prompts)]
    while documents * prompts * rows_each > FEWEST_ROWS and documents * prompts > 1:
        if prompts > 1:
            prompts = bucket_below(prompts // 2)
        else:
            documents = bucket_below(documents // 2)
        sizes.append((documents, prompts))
    return sizes


class Engine:
    """A model with its compiled decoding programs."""

    def __init__(self, model: EncoderDecoder, params: Params) -> None:
        self.model = model
        self.params = jax.tree.map(jnp.asarray, params)
        self.programs = Programs()
        self._sharding = _replicated_like(self.params)
        self._steps: set[tuple[Hashable, ...]] = set()
        """The sizes for which the step is compiled."""

    def decode(self, job: Job) -> Iterator[Outputs | None]:
        """Decodes one batch, yielding None whenever it would wait for the device.

        The last item holds all outputs; with `steps_at_once` the same comes every so many
        steps, as far as it has come.
        """
        encoded, state = self._begin(job)
        batch = job.batch
        count, width = job.active.shape
        rows_each = job.strategy.num_beams
        outputs = Outputs(
            np.zeros((count, width, job.returned, job.room), np.int32),
            np.zeros((count, width, job.returned), np.int32),
            np.full((count, width, job.returned), -math.inf, np.float32),
            ~job.active,
            np.zeros((count, width), np.int32),
            np.zeros((count, width), np.int32),
        )
        # Where each row of the state stands in the batch.
        documents = np.arange(count)
        prompts = np.broadcast_to(np.arange(width), (count, width))
        real = job.active
        tokens = batch.documents
        sizes = ladder(count, width, rows_each)
        limit = int(job.controls.max_new_tokens)
        step = 1
        _count_batch(job)
        while True:
            smaller = sizes[1] if len(sizes) > 1 and limit - step > 2 else (0, 0)
            if smaller != (0, 0) and not self._compacts(job, state, tokens, smaller):
                smaller = (0, 0)
            until = limit if job.steps_at_once is None else min(limit, step + job.steps_at_once)
            enough = _enough(sizes[0], smaller)
            state = self._advance(job, encoded, tokens, state, until, enough)
            yield None
            before = step
            step = int(jax.device_get(state.step))
            job.report.decoder_calls += step - before
            computed = math.prod(sizes[0]) * rows_each * (step - before)
            job.report.row_steps += computed
            job.report.row_steps_saved += count * width * rows_each * (step - before) - computed
            done = _collect(state, documents, prompts, real, outputs)
            if done.all() or step >= limit:
                break
            if job.steps_at_once is not None:
                yield outputs
            if _fits(done, sizes[0], smaller):
                chosen, columns, live = _places(~done, *smaller)
                encoded, state = self._keep(encoded, state, chosen, columns, live)
                prompts = np.take_along_axis(prompts[chosen], columns, axis=1)
                documents, tokens, real = documents[chosen], tokens[chosen], live
                sizes = sizes[1:]
        _count_outputs(job, outputs)
        yield outputs

    def warm_up(self, job: Job) -> None:
        """Compiles all programs that `decode` may need for this job, without running them."""
        encoded, state = jax.eval_shape(
            lambda *arguments: loop.begin(
                self.model, *arguments, strategy=job.strategy, room=job.room
            ),
            self.params,
            *self._inputs(job),
        )
        self._program_begin(job)
        tokens = job.batch.documents
        count, width = job.active.shape
        sizes = ladder(count, width, job.strategy.num_beams) if job.compact else [(count, width)]
        for size, smaller in zip(sizes, [*sizes[1:], None], strict=True):
            self._program_advance(job, encoded, tokens, state)
            if smaller is not None:
                places = _places(np.zeros(size, bool), *smaller)
                self._program_keep(encoded, state, *places)
                encoded, state = jax.eval_shape(loop.keep, encoded, state, *places)
                tokens = tokens[: smaller[0]]

    def _compacts(
        self,
        job: Job,
        state: State,
        tokens: Int[Arr, "B S"],
        smaller: tuple[int, int],
    ) -> bool:
        """Whether the batch may be moved to this size."""
        if job.compact != "auto" or job.batches_left >= REPAYING_BATCHES:
            return bool(job.compact)
        documents = smaller[0], tokens.shape[1]
        prompts = (*smaller, state.prompts.tokens.shape[2])
        return (job.strategy, documents, prompts, job.room) in self._steps

    def _inputs(self, job: Job) -> tuple[Any, ...]:
        batch = job.batch
        return (
            batch.documents,
            batch.document_mask,
            batch.prompts,
            batch.prompt_mask,
            job.active,
            job.roots,
            job.keys,
            job.controls,
        )

    def _program_begin(self, job: Job) -> Any:
        return self.programs.get(
            "start",
            _begin,
            (self.model, self.params),
            self._inputs(job),
            {"strategy": job.strategy, "room": job.room},
            lambda: _sizes(job.batch.documents.shape, job.batch.prompts.shape, job.room),
        )

    def _begin(self, job: Job) -> tuple[EncodedDocuments, State]:
        begun: tuple[EncodedDocuments, State] = self._program_begin(job)(
            self.params, *self._on_device(self._inputs(job))
        )
        return begun

    def _on_device(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Explicitly, so that no implicit transfer is left in decoding."""
        placed: tuple[Any, ...] = jax.device_put(arguments, self._sharding)
        return placed

    def _advance_arguments(
        self,
        job: Job,
        encoded: EncodedDocuments,
        tokens: Int[Arr, "B S"],
        state: State,
        until: int = 0,
        enough: tuple[int, int] = (0, 0),
    ) -> tuple[Any, ...]:
        limits = np.int32(until), (np.int32(enough[0]), np.int32(enough[1]))
        return (encoded, tokens, state, job.controls, *limits)

    def _program_advance(
        self, job: Job, encoded: EncodedDocuments, tokens: Int[Arr, "B S"], state: State
    ) -> Any:
        self._steps.add((job.strategy, tokens.shape, state.prompts.tokens.shape, job.room))
        return self.programs.get(
            "step",
            _advance,
            (self.model, self.params),
            self._advance_arguments(job, encoded, tokens, state),
            {"strategy": job.strategy},
            lambda: _sizes(tokens.shape, state.prompts.tokens.shape, job.room),
        )

    def _advance(
        self,
        job: Job,
        encoded: EncodedDocuments,
        tokens: Int[Arr, "B S"],
        state: State,
        until: int,
        enough: tuple[int, int],
    ) -> State:
        program = self._program_advance(job, encoded, tokens, state)
        arguments = self._advance_arguments(job, encoded, tokens, state, until, enough)
        advanced: State = program(self.params, *self._on_device(arguments))
        return advanced

    def _program_keep(self, encoded: EncodedDocuments, state: State, *places: np.ndarray) -> Any:
        return self.programs.get(
            "compaction",
            _keep,
            (),
            (encoded, state, *places),
            {},
            lambda: f"{state.prompts.tokens.shape[:2]} to {places[1].shape} documents x prompts",
        )

    def _keep(
        self, encoded: EncodedDocuments, state: State, *places: np.ndarray
    ) -> tuple[EncodedDocuments, State]:
        kept: tuple[EncodedDocuments, State] = self._program_keep(encoded, state, *places)(
            encoded, state, *self._on_device(places)
        )
        return kept


def _replicated_like(params: Params) -> Sharding:
    """Where arguments belong: beside the parameters, on all of their devices."""
    held = jax.tree.leaves(params)[0].sharding
    return NamedSharding(held.mesh, PartitionSpec()) if isinstance(held, NamedSharding) else held


def _enough(size: tuple[int, int], smaller: tuple[int, int]) -> tuple[int, int]:
    """The thresholds of `loop.advance`: prompts in every document, documents."""
    if smaller == (0, 0):
        return 0, 0
    return (smaller[1], 0) if smaller[1] < size[1] else (0, smaller[0])


def _fits(done: Bool[np.ndarray, "B P"], size: tuple[int, int], smaller: tuple[int, int]) -> bool:
    prompts, documents = _enough(size, smaller)
    live = ~done
    return bool(live.sum(axis=1).max() <= prompts or live.any(axis=1).sum() <= documents)


def _places(
    live: Bool[np.ndarray, "B P"], documents: int, prompts: int
) -> tuple[Int[np.ndarray, " B1"], Int[np.ndarray, "B1 P1"], Bool[np.ndarray, "B1 P1"]]:
    """Where to find what is live, in order, and which of the places found are."""
    chosen = np.arange(len(live))
    if documents < len(live):
        chosen = np.argsort(~live.any(axis=1), kind="stable")[:documents]
    columns = np.argsort(~live[chosen], axis=1, kind="stable")[:, :prompts]
    return chosen, columns, np.take_along_axis(live[chosen], columns, axis=1)


def _collect(
    state: State,
    documents: Int[np.ndarray, " B1"],
    prompts: Int[np.ndarray, "B1 P1"],
    real: Bool[np.ndarray, "B1 P1"],
    outputs: Outputs,
) -> Bool[np.ndarray, "B1 P1"]:
    """Writes what has been chosen so far to its place; returns what of the state is done."""
    held = state.prompts.outputs
    if isinstance(held, Beams):
        best = beam.best(held, outputs.tokens.shape[2])
        tokens, lengths, scores = best.tokens, best.lengths, best.log_probabilities
    else:
        tokens, lengths, scores = (
            leaf[:, :, None] for leaf in (held.tokens, held.lengths, held.scores)
        )
    # Copies: the state's buffers are given away in the next call.
    held_tokens, held_lengths, held_scores, done = (
        np.array(leaf) for leaf in jax.device_get((tokens, lengths, scores, held.done))
    )
    where = (np.broadcast_to(documents[:, None], prompts.shape)[real], prompts[real])
    outputs.tokens[where] = held_tokens[real]
    outputs.lengths[where] = held_lengths[real]
    outputs.scores[where] = held_scores[real]
    outputs.done[where] = done[real]
    if not isinstance(held, Beams):
        drafted, accepted = jax.device_get((held.drafted, held.accepted))
        outputs.drafted[where] = drafted[real]
        outputs.accepted[where] = accepted[real]
    return done


def _count_batch(job: Job) -> None:
    job.report.batches += 1
    job.report.documents += int(job.active.any(axis=1).sum())
    job.report.prompts += int(job.active.sum())


def _count_outputs(job: Job, outputs: Outputs) -> None:
    job.report.tokens += int(outputs.lengths[:, :, 0].sum())
    job.report.drafted_tokens += int(outputs.drafted.sum())
    job.report.accepted_tokens += int(outputs.accepted.sum())


def _sizes(documents: tuple[int, ...], prompts: tuple[int, ...], room: int) -> str:
    return (
        f"{documents[0]} documents of {documents[1]} tokens, "
        f"{prompts[1]} prompts of {prompts[2]}, {room} new tokens"
    )

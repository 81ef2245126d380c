"""Drives the decoding loop, batch by batch: compiled programs, compaction, partial results."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Bool, Float, Int, UInt32

from pid_jax.data.batching import Batch, BatchShape, bucket
from pid_jax.decoding import beam, loop
from pid_jax.decoding.beam import Beams
from pid_jax.decoding.compaction import (
    Compaction,
    Places,
    count_live,
    places_of,
    sizes_below,
    smaller,
)
from pid_jax.decoding.options import Controls, Strategy
from pid_jax.decoding.report import DecodingReport
from pid_jax.decoding.state import State
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.programs import Programs
from pid_jax.prompt_in_decoder import EncodedDocuments

REPAYING_BATCHES = 8
""""auto" compiles a smaller program once it has seen, or is about to see, so many batches alike."""

_begin = jax.jit(loop.begin, static_argnums=0, static_argnames=("strategy", "room"))
_advance = jax.jit(
    loop.advance, static_argnums=0, static_argnames=("strategy",), donate_argnames=("state",)
)
_keep = jax.jit(loop.keep)
_keep_documents = jax.jit(loop.keep_documents)


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
    max_new_tokens: int
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
        return bucket(self.max_new_tokens)

    def kind(self, size: tuple[int, ...]) -> Hashable:
        """What a step is compiled for, at (documents, prompts) of this size."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(self.controls))
        return self.strategy, shapes, self.shape_at(size)

    def shape_at(self, size: tuple[int, ...]) -> BatchShape:
        """The sizes of the batch with so many (documents, prompts)."""
        documents, prompts = size
        own = self.batch.shape
        return BatchShape(documents, own.document_tokens, prompts, own.prompt_tokens, self.room)


class Engine:
    """A model with its compiled decoding programs."""

    def __init__(self, model: EncoderDecoder, params: Params, programs: Programs) -> None:
        """params: arrays, all on the same devices. programs: this engine's own."""
        self.model = model
        self.params = params
        self.programs = programs
        self._sharding = _replicated_like(self.params)
        self._steps: set[Hashable] = set()
        """The kinds and sizes of batches for which the step is compiled."""
        self._seen: Counter[Hashable] = Counter()
        """How many batches there were, by kind."""

    def decode(self, job: Job) -> Iterator[Outputs | None]:
        """Decodes one batch, yielding None whenever it would wait for the device.

        The last item holds all outputs; with `steps_at_once` the same comes from the first
        token on, every so many steps, as far as it has come.
        """
        inputs = self._on_device(self._inputs(job))
        controls: Controls = inputs[-1]
        encoded, state = self._begin(job, inputs)
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
        size = count, width
        may_compact = self._may_compact(job)
        limit = job.max_new_tokens
        step = 1
        job.report.add_batch(job.active)
        yield None
        if job.steps_at_once is not None or limit == 1:
            _collect(state, documents, prompts, real, outputs)
        if job.steps_at_once is not None and limit > 1:
            yield outputs
        while step < limit:
            # Moving a batch costs about a step.
            thresholds = (0, 0)
            if may_compact and limit - step > 2:
                thresholds = self._thresholds(job, size)
            until = limit if job.steps_at_once is None else min(limit, step + job.steps_at_once)
            state = self._advance(job, encoded, state, controls, until, thresholds)
            yield None
            before = step
            step = int(jax.device_get(state.step))
            job.report.add_calls(
                step - before, math.prod(size) * rows_each, count * width * rows_each
            )
            done = _collect(state, documents, prompts, real, outputs)
            if done.all():
                break
            if job.steps_at_once is not None:
                yield outputs
            while may_compact and (target := smaller(size, count_live(done), rows_each)):
                if not self._is_worth(job, target):
                    break
                chosen, columns, live = places_of(~done, *target)
                encoded, state = self._keep(encoded, state, (chosen, columns, live))
                prompts = np.take_along_axis(prompts[chosen], columns, axis=1)
                documents, real, done, size = documents[chosen], live, ~live, target
        job.report.add_outputs(outputs.lengths[:, :, 0], outputs.drafted, outputs.accepted)
        yield outputs

    def warm_up(self, job: Job) -> None:
        """Compiles all programs that `decode` may need for this job, without running them."""
        inputs = self._inputs(job)
        begun = _results(
            self._program_begin(job, inputs),
            lambda *arguments: loop.begin(
                self.model, *arguments, strategy=job.strategy, room=job.room
            ),
            self.params,
            *inputs,
        )
        rows_each = job.strategy.num_beams
        count, width = job.active.shape
        of_size = {(count, width): begun}
        sizes = sizes_below((count, width), rows_each) if job.compact else [(count, width)]
        for size in sizes:
            encoded, state = of_size[size]
            self._program_advance(job, encoded, state, job.controls)
            for live in ((1, size[1]), (size[0], 1)) if job.compact else ():
                target = smaller(size, live, rows_each)
                if target is not None:
                    places = places_of(np.zeros(size, bool), *target)
                    kept = _results(self._program_keep(state, places), loop.keep, state, *places)
                    fewer = encoded
                    if target[0] < size[0]:
                        program = self._program_keep_documents(encoded, places[0])
                        fewer = _results(program, loop.keep_documents, encoded, places[0])
                    of_size[target] = fewer, kept

    def _may_compact(self, job: Job) -> bool:
        """Counts the batch, and says whether it may get smaller at all."""
        self._seen[job.kind(job.active.shape)] += 1
        return job.compact is not False and job.steps_at_once is None

    def _is_worth(self, job: Job, size: tuple[int, int]) -> bool:
        """Whether to move to this size, if that takes compiling."""
        if job.compact is True or job.kind(size) in self._steps:
            return True
        alike = self._seen[job.kind(job.active.shape)] + job.batches_left
        return alike >= REPAYING_BATCHES

    def _thresholds(self, job: Job, size: tuple[int, int]) -> tuple[int, int]:
        """When `loop.advance` should stop: at so many prompts of a document, documents."""
        rows_each = job.strategy.num_beams
        fewer_prompts = smaller(size, (size[0], 1), rows_each)
        fewer_documents = smaller(size, (1, size[1]), rows_each)
        prompts = fewer_prompts[1] if fewer_prompts and self._is_worth(job, fewer_prompts) else 0
        documents = 0
        if fewer_documents and fewer_documents[0] < size[0]:
            documents = fewer_documents[0] if self._is_worth(job, fewer_documents) else 0
        return prompts, documents

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

    def _on_device(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Explicitly, so that no implicit transfer is left in decoding."""
        placed: tuple[Any, ...] = jax.device_put(arguments, self._sharding)
        return placed

    def _program_begin(self, job: Job, inputs: tuple[Any, ...]) -> Any:
        return self.programs.get(
            "start",
            _begin,
            (self.model, self.params),
            inputs,
            {"strategy": job.strategy, "room": job.room},
            lambda: str(job.shape_at(job.active.shape)),
        )

    def _begin(self, job: Job, inputs: tuple[Any, ...]) -> tuple[EncodedDocuments, State]:
        begun: tuple[EncodedDocuments, State] = self._program_begin(job, inputs)(
            self.params, *inputs
        )
        return begun

    def _program_advance(
        self, job: Job, encoded: EncodedDocuments, state: State, controls: Controls
    ) -> Any:
        self._steps.add(job.kind(state.prompts.mask.shape[:2]))
        limits = np.int32(0), (np.int32(0), np.int32(0))
        return self.programs.get(
            "step",
            _advance,
            (self.model, self.params),
            (encoded, state, controls, *limits),
            {"strategy": job.strategy},
            lambda: str(job.shape_at(state.prompts.mask.shape[:2])),
        )

    def _advance(
        self,
        job: Job,
        encoded: EncodedDocuments,
        state: State,
        controls: Controls,
        until: int,
        enough: tuple[int, int],
    ) -> State:
        limits = np.int32(until), (np.int32(enough[0]), np.int32(enough[1]))
        program = self._program_advance(job, encoded, state, controls)
        advanced: State = program(self.params, encoded, state, controls, *self._on_device(limits))
        return advanced

    def _program_keep(self, state: State, places: Places) -> Any:
        return self.programs.get(
            "compaction",
            _keep,
            (),
            (state, *places),
            {},
            lambda: f"{state.prompts.mask.shape[:2]} to {places[1].shape} documents x prompts",
        )

    def _program_keep_documents(
        self, encoded: EncodedDocuments, documents: Int[np.ndarray, " B1"]
    ) -> Any:
        return self.programs.get(
            "compaction",
            _keep_documents,
            (),
            (encoded, documents),
            {},
            lambda: f"the encodings of {len(encoded.mask)} to {len(documents)} documents",
        )

    def _keep(
        self, encoded: EncodedDocuments, state: State, places: Places
    ) -> tuple[EncodedDocuments, State]:
        placed = self._on_device(places)
        if len(places[0]) < len(encoded.mask):
            encoded = self._program_keep_documents(encoded, places[0])(encoded, placed[0])
        return encoded, self._program_keep(state, places)(state, *placed)


def _results(program: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The shapes of what a compiled function returns, and where its program leaves them."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(function, *arguments),
        program.output_shardings,
    )


def _replicated_like(params: Params) -> Sharding:
    """Where arguments belong: beside the parameters, on all of their devices."""
    held = jax.tree.leaves(params)[0].sharding
    return NamedSharding(held.mesh, PartitionSpec()) if isinstance(held, NamedSharding) else held


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

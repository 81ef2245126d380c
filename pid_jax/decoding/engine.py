"""Drives the decoding loop, batch by batch: compiled programs, compaction, partial results."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Bool, Float, Int, UInt32

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import Batch, BatchShape
from pid_jax.decoding import beam, loop, token_logprobs
from pid_jax.decoding.beam import Beams
from pid_jax.decoding.compaction import (
    FEWEST_ROWS,
    Compaction,
    Places,
    count_live,
    holds,
    places_of,
    sizes_below,
    smaller,
)
from pid_jax.decoding.options import Controls, Strategy
from pid_jax.decoding.report import DecodingReport
from pid_jax.decoding.savings import Run, Savings
from pid_jax.decoding.state import State
from pid_jax.decoding.token_logprobs import TokenLogprobs
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.programs import Program, Programs
from pid_jax.prompt_in_decoder import EncodedDocuments

_encode = jax.jit(prompt_in_decoder.encode, static_argnums=0)
_prefill = jax.jit(loop.prefill, static_argnums=0, static_argnames=("strategy", "room"))
_advance = jax.jit(
    loop.advance, static_argnums=0, static_argnames=("strategy",), donate_argnames=("state",)
)
_score = jax.jit(prompt_in_decoder.target_log_probabilities, static_argnums=0)
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
    logprobs: TokenLogprobs | None = None
    """`[B, P, N, T]`, where they are asked for."""


class Kind(NamedTuple):
    """What a decoding program is compiled for."""

    strategy: Strategy
    tables: tuple[tuple[int, ...], ...]
    """The shapes of the tables among the controls: stops, allowed outputs, barred words."""
    shape: BatchShape

    def __str__(self) -> str:
        return str(self.shape)


@dataclass
class Job:
    """One batch and how its outputs are to be chosen."""

    batch: Batch
    active: Bool[np.ndarray, "B P"]
    """False for the empty places of a ragged batch."""
    shape: BatchShape
    """`prompts` of it are decoded at once, the batch may hold several times as many;
    `target_tokens` is the most tokens to be chosen, as the programs know it."""
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
        return self.shape.target_tokens

    @property
    def size(self) -> tuple[int, int]:
        """Documents, and prompts decoded at once."""
        return self.shape.documents, self.shape.prompts

    def kind(self, size: tuple[int, int]) -> Kind:
        """What a step is compiled for, at (documents, prompts) of this size."""
        shape = replace(self.shape, documents=size[0], prompts=size[1])
        return kind_of(self.strategy, self.controls, shape)

    def parts(self) -> Iterator[slice]:
        """The prompts that are decoded at once, part by part."""
        for first in range(0, self.active.shape[1], self.shape.prompts):
            yield slice(first, first + self.shape.prompts)


def kind_of(strategy: Strategy, controls: Controls, shape: BatchShape) -> Kind:
    """What the programs for such a batch are compiled for."""
    tables = jax.tree.leaves(controls)
    return Kind(strategy, tuple(leaf.shape for leaf in tables), shape)


class Engine:
    """A model with its compiled decoding programs."""

    def __init__(self, model: EncoderDecoder, params: Params, programs: Programs) -> None:
        """params: arrays, all on the same devices. programs: this engine's own."""
        self.model = model
        self.params = params
        self.programs = programs
        self._sharding = _replicated_like(self.params)
        self._savings = Savings()

    def shapes(self, strategy: Strategy, controls: Controls) -> list[BatchShape]:
        """The shapes for which decoding is compiled, under these options."""
        return [
            kind.shape
            for kind in self.programs.seconds_by_label("prefill")
            if isinstance(kind, Kind) and kind == kind_of(strategy, controls, kind.shape)
        ]

    def decode(self, job: Job) -> Iterator[Outputs | None]:
        """Decodes one batch, yielding None whenever it would wait for the device.

        The last item holds all outputs; with `steps_at_once` the same comes from the first
        token on, every so many steps, as far as it has come.
        """
        controls: Controls = self._on_device(job.controls)
        encoded = self._encode(self._on_device((job.batch.documents, job.batch.document_mask)))
        count, width = job.active.shape
        outputs = Outputs(
            np.zeros((count, width, job.returned, job.room), np.int32),
            np.zeros((count, width, job.returned), np.int32),
            np.full((count, width, job.returned), -math.inf, np.float32),
            ~job.active,
            np.zeros((count, width), np.int32),
            np.zeros((count, width), np.int32),
            self._empty_logprobs(job),
        )
        job.report.add_batch(job.batch, job.active)
        for part in job.parts():
            yield from self._decode_part(job, encoded, controls, part, outputs)
        job.report.add_outputs(outputs.lengths[:, :, 0], outputs.drafted, outputs.accepted)
        yield outputs

    def _empty_logprobs(self, job: Job) -> TokenLogprobs | None:
        if job.strategy.logprobs is None:
            return None
        places = (*job.active.shape, job.returned)
        count = min(job.strategy.logprobs, self.model.config.vocab_size)
        return token_logprobs.empty(places, count, job.room, np)

    def _decode_part(
        self,
        job: Job,
        encoded: EncodedDocuments,
        controls: Controls,
        part: slice,
        outputs: Outputs,
    ) -> Iterator[Outputs | None]:
        """Decodes the prompts of one part into their places.

        Every round of the loop moves the prompts to a smaller size, or takes at least one step:
        `_advance` is told to stop only at fewer live prompts or documents than there are.
        """
        state = self._prefill(job, encoded, controls, part)
        rows_each = job.strategy.num_beams
        # Where each row of the state stands in the batch.
        documents = np.arange(job.size[0])
        prompts = np.broadcast_to(np.arange(part.start, part.stop), job.size)
        real, done, size = job.active[:, part], ~job.active[:, part], job.size
        limit, step, run = job.max_new_tokens, 1, Run()
        yield None
        if job.steps_at_once is not None or limit == 1:
            done = _collect(state, documents, prompts, real, outputs)
        if job.steps_at_once is not None and limit > 1 and not done.all():
            yield outputs
        while step < limit and not done.all():
            target = self._target(job, size, done)
            if target is not None:
                encoded, state, places = self._move(job, encoded, state, done, target)
                chosen, columns, real = places
                prompts = np.take_along_axis(prompts[chosen], columns, axis=1)
                documents, done, size = documents[chosen], ~real, target
            until = limit if job.steps_at_once is None else min(limit, step + job.steps_at_once)
            program = self._program_advance(job, encoded, state, controls).compile()
            started = time.perf_counter()
            state = self._advance(
                program, encoded, state, controls, until, self._pauses(job, size, done)
            )
            yield None
            before, step = step, int(jax.device_get(state.step))
            run.add(size, step - before, time.perf_counter() - started)
            whole = math.prod(job.size) * rows_each
            job.report.add_calls(step - before, math.prod(size) * rows_each, whole)
            done = _collect(state, documents, prompts, real, outputs)
            if job.steps_at_once is not None and not done.all():
                yield outputs
        if job.compact == "auto":
            self._count_savings(job, run, outputs.lengths[:, part, 0], part)

    def score(self, batch: Batch, shape: BatchShape) -> Float[np.ndarray, "B P"]:
        """log p(target | document, prompt) for a batch, `shape.prompts` prompts at once."""
        documents = self._on_device((batch.documents, batch.document_mask))
        encoded = self._encode(documents)
        scores = []
        for first in range(0, batch.prompts.shape[1], shape.prompts):
            part = batch._replace(
                **{
                    name: getattr(batch, name)[:, first : first + shape.prompts]
                    for name in ("prompts", "prompt_mask", "targets", "target_mask")
                }
            )
            placed = self._on_device(part)
            program = self.programs.get(
                "score", _score, (self.model, self.params), (placed, encoded), {}, shape
            ).compile()
            scores.append(jax.device_get(program(self.params, placed, encoded)))
        return np.concatenate(scores, axis=1)

    def scored_shapes(self) -> list[BatchShape]:
        """The shapes for which scoring is compiled."""
        labels = self.programs.seconds_by_label("score")
        return [shape for shape in labels if isinstance(shape, BatchShape)]

    def trace(self, job: Job) -> list[Program]:
        """What decoding of this job certainly needs, for others to compile, in that order.

        Only where all is on one device: elsewhere compilation decides where results are.
        """
        if isinstance(self._sharding, NamedSharding):
            return []

        def results(program: Program) -> Any:
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding),
                program.results,
            )

        encode = self._program_encode((job.batch.documents, job.batch.document_mask))
        inputs = (*self._inputs(job, next(job.parts())), job.controls)
        prefill = self._program_prefill(job, (results(encode), *inputs))
        if job.max_new_tokens == 1:
            return [encode, prefill]
        advance = self._program_advance(job, results(encode), results(prefill), job.controls)
        return [encode, prefill, advance]

    def warm_up(self, job: Job) -> None:
        """Compiles all programs that `decode` may need for this job, without running them."""
        encoded = _results(self._program_encode((job.batch.documents, job.batch.document_mask)))
        inputs = (*self._inputs(job, next(job.parts())), job.controls)
        begun = _results(self._program_prefill(job, (encoded, *inputs)))
        rows_each = job.strategy.num_beams
        of_size = {job.size: (encoded, begun)}
        for size in sizes_below(job.size, rows_each) if job.compact else [job.size]:
            encoded, state = of_size[size]
            self._program_advance(job, encoded, state, job.controls).compile()
            for live in ((1, size[1]), (size[0], 1)) if job.compact else ():
                target = smaller(size, live, rows_each)
                if target is not None:
                    of_size[target] = self._warm_up_move(encoded, state, size, target)

    def _warm_up_move(
        self, encoded: Any, state: Any, size: tuple[int, int], target: tuple[int, int]
    ) -> tuple[Any, Any]:
        """Compiles the move from one size to another; returns what it leads to."""
        places = places_of(np.zeros(size, bool), *target)
        if _moves_on_host():
            moved = (
                jax.eval_shape(loop.keep_documents, encoded, places[0]),
                jax.eval_shape(loop.keep, state, *places),
            )
            place = self._sharding
            fewer, kept = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), moved
            )
            return fewer, kept
        kept = _results(self._program_keep(state, places))
        if target[0] < size[0]:
            encoded = _results(self._program_keep_documents(encoded, places[0]))
        return encoded, kept

    def _target(
        self, job: Job, size: tuple[int, int], done: Bool[np.ndarray, "B1 P1"]
    ) -> tuple[int, int] | None:
        """The smaller size to move what is not done to, or None."""
        live = count_live(done)
        fitting = [one for one in self._available(job, size) if holds(one, live)]
        return min(fitting, key=math.prod, default=None)

    def _available(self, job: Job, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The smaller sizes that a batch of this size may be moved to."""
        if job.compact is False or job.steps_at_once is not None:
            return []
        rows_each = job.strategy.num_beams
        if job.compact is True:
            return sizes_below(size, rows_each)[1:]
        if math.prod(size) * rows_each <= FEWEST_ROWS:
            return []
        compiled = self.programs.seconds_by_label("decode")
        own = job.kind(size)
        sizes = [
            (kind.shape.documents, kind.shape.prompts)
            for kind in compiled
            if isinstance(kind, Kind) and kind == job.kind(_rows_of(kind))
        ]
        sizes += [
            one
            for one in sizes_below(size, rows_each)[1:]
            if self._savings.repays(job.kind(one), compiled.get(own, math.inf), job.batches_left)
        ]
        return [one for one in sizes if holds(size, one) and math.prod(one) <= math.prod(size) // 2]

    def _pauses(
        self, job: Job, size: tuple[int, int], done: Bool[np.ndarray, "B1 P1"]
    ) -> tuple[int, int]:
        """When to stop for a move: at so many live prompts of a document, so many live documents.

        Always fewer than there are, so that a step is taken.
        """
        documents, prompts = count_live(done)
        available = self._available(job, size)
        fewer_prompts = [one[1] for one in available if one[0] >= documents and one[1] < prompts]
        fewer_documents = [one[0] for one in available if one[0] < documents]
        return max(fewer_prompts, default=0), max(fewer_documents, default=0)

    def _count_savings(
        self, job: Job, run: Run, lengths: Int[np.ndarray, "B P"], part: slice
    ) -> None:
        compiled = self.programs.seconds_by_label("decode")
        ladder = sizes_below(job.size, job.strategy.num_beams)[1:]
        kinds = [(job.kind(size), size) for size in ladder]
        missing = [(kind, size) for kind, size in kinds if kind not in compiled]
        self._savings.add(run, lengths, job.active[:, part], missing)

    def _move(
        self,
        job: Job,
        encoded: EncodedDocuments,
        state: State,
        done: Bool[np.ndarray, "B0 P0"],
        target: tuple[int, int],
    ) -> tuple[EncodedDocuments, State, Places]:
        """What is not done, at a smaller size."""
        places = places_of(~done, *target)
        fewer = len(places[0]) < len(done)
        if _moves_on_host():
            # Their memory is the host's: no program has to be compiled for each pair of sizes.
            if fewer:
                encoded = loop.keep_documents(jax.device_get(encoded), places[0])
            state = loop.keep(jax.device_get(state), *places)
            encoded, state = self._on_device((encoded, state))
            return encoded, state, places
        placed = self._on_device(places)
        if fewer:
            encoded = self._program_keep_documents(encoded, places[0]).compile()(encoded, placed[0])
        return encoded, self._program_keep(state, places).compile()(state, *placed), places

    def _inputs(self, job: Job, part: slice) -> tuple[Any, ...]:
        """What the prefill of a part reads besides the encoding and the controls."""
        return (
            job.batch.prompts[:, part],
            job.batch.prompt_mask[:, part],
            job.active[:, part],
            None if job.roots is None else job.roots[:, part],
            None if job.keys is None else job.keys[:, part],
        )

    def _on_device(self, arguments: Any) -> Any:
        """Explicitly, so that no implicit transfer is left in decoding."""
        return jax.device_put(arguments, self._sharding)

    def _program_encode(self, documents: tuple[Any, ...]) -> Program:
        count, tokens = documents[0].shape
        return self.programs.get(
            "encode",
            _encode,
            (self.model, self.params),
            documents,
            {},
            f"{count} documents of {tokens} tokens",
        )

    def _encode(self, documents: tuple[Any, ...]) -> EncodedDocuments:
        encoded: EncodedDocuments = self._program_encode(documents).compile()(
            self.params, *documents
        )
        return encoded

    def _program_prefill(self, job: Job, inputs: tuple[Any, ...]) -> Program:
        return self.programs.get(
            "prefill",
            _prefill,
            (self.model, self.params),
            inputs,
            {"strategy": job.strategy, "room": job.room},
            job.kind(job.size),
        )

    def _prefill(
        self, job: Job, encoded: EncodedDocuments, controls: Controls, part: slice
    ) -> State:
        inputs = (encoded, *self._on_device(self._inputs(job, part)), controls)
        state: State = self._program_prefill(job, inputs).compile()(self.params, *inputs)
        return state

    def _program_advance(
        self, job: Job, encoded: EncodedDocuments, state: State, controls: Controls
    ) -> Program:
        documents, prompts = state.prompts.mask.shape[:2]
        limits = np.int32(0), (np.int32(0), np.int32(0))
        return self.programs.get(
            "decode",
            _advance,
            (self.model, self.params),
            (encoded, state, controls, *limits),
            {"strategy": job.strategy},
            job.kind((documents, prompts)),
        )

    def _advance(
        self,
        program: Any,
        encoded: EncodedDocuments,
        state: State,
        controls: Controls,
        until: int,
        enough: tuple[int, int],
    ) -> State:
        limits = np.int32(until), (np.int32(enough[0]), np.int32(enough[1]))
        advanced: State = program(self.params, encoded, state, controls, *self._on_device(limits))
        return advanced

    def _program_keep(self, state: State, places: Places) -> Program:
        return self.programs.get(
            "compaction",
            _keep,
            (),
            (state, *places),
            {},
            f"{state.prompts.mask.shape[:2]} to {places[1].shape} documents x prompts",
        )

    def _program_keep_documents(
        self, encoded: EncodedDocuments, documents: Int[np.ndarray, " B1"]
    ) -> Program:
        return self.programs.get(
            "compaction",
            _keep_documents,
            (),
            (encoded, documents),
            {},
            f"the encodings of {len(encoded.mask)} to {len(documents)} documents",
        )


def _moves_on_host() -> bool:
    return jax.default_backend() == "cpu"


def _rows_of(kind: Kind) -> tuple[int, int]:
    return kind.shape.documents, kind.shape.prompts


def _results(program: Program) -> Any:
    """The shapes of what a program returns, compiled here, and where it leaves them."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        program.results,
        program.compile().output_shardings,
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
    # First to the host: outside of a program, a slice on the device compiles for every shape.
    held = jax.device_get(state.prompts.outputs)
    if isinstance(held, Beams):
        best = beam.best(held, outputs.tokens.shape[2])
        tokens, lengths, scores = best.tokens, best.lengths, best.log_probabilities
        logprobs = best.logprobs
    else:
        tokens, lengths, scores, logprobs = jax.tree.map(
            lambda leaf: leaf[:, :, None], (held.tokens, held.lengths, held.scores, held.logprobs)
        )
    done = np.array(held.done)  # a copy: the state's buffers are given away in the next call
    where = (np.broadcast_to(documents[:, None], prompts.shape)[real], prompts[real])
    outputs.tokens[where] = tokens[real]
    outputs.lengths[where] = lengths[real]
    outputs.scores[where] = scores[real]
    outputs.done[where] = done[real]
    for ours, theirs in zip(
        jax.tree.leaves(outputs.logprobs), jax.tree.leaves(logprobs), strict=True
    ):
        ours[where] = theirs[real]
    if not isinstance(held, Beams):
        outputs.drafted[where] = held.drafted[real]
        outputs.accepted[where] = held.accepted[real]
    return done

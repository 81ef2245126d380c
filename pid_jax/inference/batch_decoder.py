"""One batch on one device: encode its documents, prefill its prompts, decode until all finish."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Bool, Float, Int

from pid_jax import prompt_in_decoder
from pid_jax.backends.settings import placement_of
from pid_jax.data.batching import Batch, BatchShape
from pid_jax.data.packing import PackedBatch, PackedShape, part_of, sums_by_subtask
from pid_jax.decoding.compaction import (
    Size,
    gather_documents,
    gather_of,
    gather_prompts,
    sizes_below,
    smaller,
)
from pid_jax.decoding.decode import decode
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.decoding.prefill import prefill
from pid_jax.decoding.state import State
from pid_jax.inference.compaction_policy import CompactionPolicy, DecodingRun
from pid_jax.inference.decoding_batch import DecodingBatch, Kind, Outputs, no_outputs
from pid_jax.models.protocol import EncoderDecoder, Params
from pid_jax.programs import CompiledFunction, Executable, Programs
from pid_jax.prompt_in_decoder import EncodedDocuments


@dataclass
class _Active:
    """The part of a batch that has not finished, on the device, and where it belongs."""

    encoded: EncodedDocuments
    state: State
    documents: Int[np.ndarray, " B1"]
    """Each row's document in the batch."""
    prompts: Int[np.ndarray, "B1 P1"]
    """Each prompt's column in the batch."""
    real: Bool[np.ndarray, "B1 P1"]
    """False for padding."""
    finished: Bool[np.ndarray, "B1 P1"]

    @property
    def size(self) -> Size:
        """Documents, and prompts of each."""
        return self.real.shape[0], self.real.shape[1]


class BatchDecoder:
    """A model on one device, or where its parameters are sharded, with its compiled programs."""

    def __init__(self, model: EncoderDecoder, params: Params, programs: Programs) -> None:
        """params: arrays, all on the same devices. programs: those of these devices."""
        self.model = model
        self.params = params
        self._sharding = _replicated_like(params)
        self._platform = placement_of(params).platform
        self._policy = CompactionPolicy()
        self._options: tuple[DecodingOptions | None, Any] = None, None
        """Those of the latest batch, and where they are on the device: tables may be large."""

        def compiled(name: str, function: Any, **jit_options: Any) -> CompiledFunction:
            return CompiledFunction(
                programs, name, function, static=(model,), constant_shapes=1, **jit_options
            )

        self._encode = compiled("encode", prompt_in_decoder.encode)
        self._prefill = compiled("prefill", prefill, static_argnames=("length",))
        self._decode = compiled("decode", decode, donate_argnames=("state",))
        self._score = compiled("score", prompt_in_decoder.packed_log_probabilities)
        self._gather_prompts = CompiledFunction(programs, "compaction", gather_prompts)
        self._gather_documents = CompiledFunction(
            programs, "compaction of documents", gather_documents
        )

    def shapes(self, options: DecodingOptions) -> list[BatchShape]:
        """The shapes for which decoding with such options is compiled."""
        signature = options.signature()
        labels = self._prefill.seconds_by_label()
        return [
            kind.shape for kind in labels if isinstance(kind, Kind) and kind.signature == signature
        ]

    def scored_shapes(self) -> list[PackedShape]:
        """The shapes for which scoring is compiled."""
        labels = self._score.seconds_by_label()
        return [shape for shape in labels if isinstance(shape, PackedShape)]

    def decode(self, batch: DecodingBatch) -> Outputs:
        """Decodes one batch."""
        [outputs] = self.stream(batch)
        return outputs

    def stream(self, batch: DecodingBatch, every: int | None = None) -> Iterator[Outputs]:
        """Decodes one batch, yielding its outputs every so many tokens and when all have finished.

        every: None yields once, at the end. The arrays of all items are the same.
        """
        options = self._options_on_device(batch.options)
        encoded = self._encoded(batch.batch)
        outputs = no_outputs(batch, self.model.config.vocab_size)
        outputs.report.add_batch(batch.batch, batch.active)
        for part in batch.parts():
            yield from self._decode_part(batch, options, encoded, part, outputs, every)
        outputs.report.add_outputs(outputs.lengths[:, :, 0], outputs.drafted, outputs.accepted)
        yield outputs

    def _decode_part(
        self,
        batch: DecodingBatch,
        options: DecodingOptions,
        encoded: EncodedDocuments,
        part: slice,
        outputs: Outputs,
        every: int | None,
    ) -> Iterator[Outputs]:
        """Decodes some of a batch's prompts, compacting them on the way, and writes their outputs.

        Every round either moves the batch to a smaller size or runs at least one step.
        """
        inputs = self._on_device(_prefill_inputs(batch, part))
        state = self._prefill(
            self.params,
            encoded,
            *inputs,
            options,
            label=batch.kind(batch.size),
            length=batch.shape.target_tokens,
        )
        active = _Active(
            encoded,
            state,
            np.arange(batch.size[0]),
            np.broadcast_to(np.arange(part.start, part.stop), batch.size),
            batch.active[:, part],
            ~batch.active[:, part],
        )
        del state  # or a compacted batch would leave the whole one in memory
        limit, step, run = batch.max_steps, 1, DecodingRun()
        if every is not None or limit == 1:
            _write_outputs(batch, active, outputs)
        if every is not None and limit > 1 and not active.finished.all():
            yield outputs
        while step < limit and not active.finished.all():
            stop_at = (0, 0)
            if every is None:
                compiled = self._decode.seconds_by_label()
                target = self._policy.target(batch, active.finished, compiled)
                if target is not None:
                    active = self._compacted(active, target)
                stop_at = self._policy.stop_at(batch, active.finished, compiled)
            until = limit if every is None else min(limit, step + every)
            limits = self._on_device(_limits(until, stop_at))
            kind = batch.kind(active.size)
            arguments = self.params, active.encoded, active.state, options, *limits
            program = self._decode.compile(*arguments, label=kind)
            started = time.perf_counter()
            active.state = program(*arguments)
            before, step = step, int(jax.device_get(active.state.step))
            run.add(active.size, step - before, time.perf_counter() - started)
            beams = batch.options.search.beams
            rows, all_rows = (math.prod(size) * beams for size in (active.size, batch.size))
            outputs.report.add_calls(step - before, rows, all_rows)
            _write_outputs(batch, active, outputs)
            if every is not None and not active.finished.all():
                yield outputs
        self._policy.record(
            batch,
            run,
            outputs.lengths[:, part, 0],
            batch.active[:, part],
            self._decode.seconds_by_label(),
        )

    def score(
        self, batch: PackedBatch, shape: PackedShape, subtasks: int
    ) -> Float[np.ndarray, "B {subtasks}"]:
        """log p(target | document, prompt) for a batch, `shape.rows` packed rows at once.

        subtasks: the most of a document.
        """
        encoded = self._encoded(batch)
        scores = np.zeros(batch.targets.shape)
        for first in range(0, batch.tokens.shape[1], shape.rows):
            part = self._on_device(part_of(batch, slice(first, first + shape.rows)))
            scores += jax.device_get(self._score(self.params, part, encoded, label=shape))
        return sums_by_subtask(batch, scores, subtasks)

    def trace(self, batch: DecodingBatch) -> list[Executable]:
        """The executables that decoding of this batch needs first, in order, for any thread.

        Only where all arrays are on one device: elsewhere compilation decides where results are.
        """
        if isinstance(self._sharding, NamedSharding):
            return []
        return list(self.executables(batch))

    def executables(self, batch: DecodingBatch) -> Iterator[Executable]:
        """The encoder, the prefill and the decode step's loop, each traced when it is next.

        On several devices, tracing the next one compiles the last one, because compilation decides
        where results are. The arguments are shapes, so devices may be absent.
        """
        kind, documents = batch.kind(batch.size), self._shapes(_documents(batch.batch))
        encode = self._encode.trace(self.params, *documents, label=_label(documents))
        yield encode
        options = self._shapes(batch.options)
        inputs = (*self._shapes(_prefill_inputs(batch, next(batch.parts()))), options)
        length = batch.shape.target_tokens
        encoded = self._results(encode)
        first = self._prefill.trace(self.params, encoded, *inputs, label=kind, length=length)
        yield first
        if batch.max_steps > 1:
            limits = self._shapes(_limits(0, (0, 0)))
            arguments = encoded, self._results(first), options, *limits
            yield self._decode.trace(self.params, *arguments, label=kind)

    def scoring_executables(self, batch: PackedBatch, shape: PackedShape) -> Iterator[Executable]:
        """The encoder and the program that scores targets, as `executables` yields them."""
        batch = self._shapes(batch)
        documents = _documents(batch)
        encode = self._encode.trace(self.params, *documents, label=_label(documents))
        yield encode
        yield self._score.trace(self.params, batch, self._results(encode), label=shape)

    def _shapes(self, arguments: Any) -> Any:
        """Arguments on the host as they will be on several devices. On one they stay the same."""
        if not isinstance(self._sharding, NamedSharding):
            return arguments
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding),
            arguments,
        )

    def _results(self, executable: Executable) -> Any:
        """The shapes of the results, with their shardings."""
        if isinstance(self._sharding, NamedSharding):
            shardings = executable.compile().output_shardings
        else:
            shardings = jax.tree.map(lambda _: self._sharding, executable.results)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            executable.results,
            shardings,
        )

    def warm_up(self, batch: DecodingBatch) -> None:
        """Compiles all programs that decoding of this batch may need, without running them."""
        documents = _documents(batch.batch)
        encoded = self._encode.warm_up(self.params, *documents, label=_label(documents))
        kind, length = batch.kind(batch.size), batch.shape.target_tokens
        inputs = (*_prefill_inputs(batch, next(batch.parts())), batch.options)
        state = self._prefill.warm_up(self.params, encoded, *inputs, label=kind, length=length)
        beams = batch.options.search.beams
        of_size = {batch.size: (encoded, state)}
        for size in sizes_below(batch.size, beams) if batch.compact else [batch.size]:
            encoded, state = of_size[size]
            arguments = encoded, state, batch.options, *_limits(0, (0, 0))
            self._decode.warm_up(self.params, *arguments, label=batch.kind(size))
            for active in ((1, size[1]), (size[0], 1)) if batch.compact else ():
                target = smaller(size, active, beams)
                if target is not None:
                    of_size[target] = self._warm_up_move(encoded, state, size, target)

    def _warm_up_move(self, encoded: Any, state: Any, size: Size, target: Size) -> tuple[Any, Any]:
        """Compiles the move from one size to another. Returns the shapes of what it makes."""
        gather = gather_of(np.zeros(size, bool), target)
        if _gathers_on_host(self._platform):
            moved = (
                jax.eval_shape(gather_documents, encoded, gather.documents),
                jax.eval_shape(gather_prompts, state, gather),
            )
            encoded, state = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding),
                moved,
            )
            return encoded, state
        state = self._gather_prompts.warm_up(state, gather, label=_move(size, target))
        if target[0] < size[0]:
            label = f"{size[0]} to {target[0]} documents"
            encoded = self._gather_documents.warm_up(encoded, gather.documents, label=label)
        return encoded, state

    def _compacted(self, active: _Active, target: Size) -> _Active:
        """The prompts that have not finished, in a smaller batch."""
        gather = gather_of(~active.finished, target)
        encoded, state, size = active.encoded, active.state, active.size
        if _gathers_on_host(self._platform):
            # The device's memory is the host's: no program is compiled for each pair of sizes.
            if target[0] < size[0]:
                encoded = gather_documents(jax.device_get(encoded), gather.documents)
            state = gather_prompts(jax.device_get(state), gather)
            encoded, state = self._on_device((encoded, state))
        else:
            on_device = self._on_device(gather)
            if target[0] < size[0]:
                label = f"{size[0]} to {target[0]} documents"
                encoded = self._gather_documents(encoded, on_device.documents, label=label)
            state = self._gather_prompts(state, on_device, label=_move(size, target))
        columns, real = np.asarray(gather.prompts), np.asarray(gather.active)
        return _Active(
            encoded,
            state,
            active.documents[gather.documents],
            np.take_along_axis(active.prompts[gather.documents], columns, axis=1),
            real,
            ~real,
        )

    def _encoded(self, batch: Batch | PackedBatch) -> EncodedDocuments:
        documents = self._on_device(_documents(batch))
        encoded: EncodedDocuments = self._encode(self.params, *documents, label=_label(documents))
        return encoded

    def _options_on_device(self, options: DecodingOptions) -> DecodingOptions:
        known, on_device = self._options  # once: another thread may replace it
        if known is not options:
            on_device = self._on_device(options)
            self._options = options, on_device
        return on_device

    def _on_device(self, arguments: Any) -> Any:
        """Explicitly, so that decoding has no implicit transfer."""
        return jax.device_put(arguments, self._sharding)


def _documents(batch: Batch | PackedBatch) -> tuple[Any, Any]:
    return batch.documents, batch.document_mask


def _label(documents: tuple[Any, Any]) -> str:
    count, tokens = documents[0].shape
    return f"{count} documents of {tokens} tokens"


def _move(size: Size, target: Size) -> str:
    return f"{size} to {target} documents x prompts"


def _prefill_inputs(batch: DecodingBatch, part: slice) -> tuple[Any, ...]:
    """The arguments of `prefill` between the encoded documents and the options."""
    return (
        batch.batch.prompts[:, part],
        batch.batch.prompt_mask[:, part],
        batch.active[:, part],
        batch.max_new_tokens[:, part],
        jax.tree.map(lambda leaf: leaf[:, part], batch.start),
        None if batch.keys is None else batch.keys[:, part],
    )


def _limits(until: int, stop_at: Size) -> tuple[Any, Any]:
    """The last two arguments of `decode`."""
    return np.int32(until), (np.int32(stop_at[0]), np.int32(stop_at[1]))


def _gathers_on_host(platform: str | None) -> bool:
    return platform == "cpu"


def _replicated_like(params: Params) -> Sharding:
    """Where arguments belong: beside the parameters, on all of their devices."""
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def _write_outputs(batch: DecodingBatch, active: _Active, outputs: Outputs) -> None:
    """Writes the tokens so far to the arrays of the batch, and which prompts have finished."""
    # To the host first: outside of a program, a slice on the device compiles for every shape.
    prompts = jax.device_get((active.state.prompts.sequences, active.state.prompts.lookup))
    sequences, lookup = prompts
    best = batch.options.search.best(sequences, batch.returned)
    # A copy: the next call takes over the memory of the state.
    active.finished = np.array(sequences.finished)
    real = active.real
    rows = np.broadcast_to(active.documents[:, None], active.prompts.shape)[real]
    where = rows, active.prompts[real]
    outputs.tokens[where] = best.tokens[real]
    outputs.lengths[where] = best.lengths[real]
    outputs.scores[where] = best.scores[real]
    outputs.finished[where] = active.finished[real]
    if outputs.logprobs is not None:
        for ours, theirs in zip(outputs.logprobs, best.logprobs, strict=True):
            ours[where] = theirs[real]
    if lookup is not None:
        outputs.drafted[where] = lookup.drafted[real]
        outputs.accepted[where] = lookup.accepted[real]

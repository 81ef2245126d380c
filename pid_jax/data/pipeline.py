"""Batch streams for training and evaluation, and the shapes that their batches can have."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import grain
import numpy as np
from jaxtyping import Int

from pid_jax.data import packed_batches
from pid_jax.data.batching import Batch, BatchShape, bucket, collate, shape_of
from pid_jax.data.packed_batches import OwnRows
from pid_jax.data.packing import PackedBatch, PackedShape
from pid_jax.data.row_shapes import RowShape
from pid_jax.data.token_source import TokenizedExample, TokenSource
from pid_jax.data.training_plan import SubtasksOf, TrainingPlan, drawn_of
from pid_jax.errors import UserError

log = logging.getLogger(__name__)

Arrange = Callable[[Sequence[TokenizedExample]], Sequence[TokenizedExample]]

Stream = Callable[[int], Batch | PackedBatch]
"""Batch n of an endless stream, from n."""


def as_they_are(examples: Sequence[TokenizedExample]) -> Sequence[TokenizedExample]:
    return examples


def iterated(
    stream: Stream, *, threads: int = 1, prefetch: int = 4
) -> grain.DatasetIterator[Batch | PackedBatch]:
    """An endless iterator over batch 0, 1, ..., whose position can be saved and restored.

    `get_state`, `set_state` and Orbax's checkpointables are exact: they skip and repeat nothing.
    The batches do not depend on `threads` and `prefetch`.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.range(_ENDLESS).map(stream).to_iter_dataset(options))


def training_stream(
    source: TokenSource,
    *,
    batch_size: int,
    seed: int,
    pad_token_id: int,
    decoder_start_token_id: int,
    max_prompts: int | None = None,
    negative_target: Sequence[int] | None = None,
    negative_rate: float = 1.0,
    arrange: Arrange = as_they_are,
    own_rows: OwnRows = np.arange,
    packing: bool = False,
    document_multiple: int = 64,
    window: int = 16,
) -> Stream:
    """A function from n to batch n of an endless, shuffled stream.

    An epoch visits every example once. Other examples of the epoch fill its last batch. To form
    batches with little padding, every `window` batches are sorted by the padded length of their
    documents, then by the decoder tokens that an example is expected to have, split, and shuffled.
    Start-up time and memory do not depend on the number of examples.

    A subtask whose target is `negative_target` (token ids, with the end token) is included with
    probability `negative_rate`. At most `max_prompts` of the included subtasks are drawn, and at
    least one.

    `arrange` maps the drawn examples of a batch to the collated ones. For shorter examples it must
    not return more or longer ones, because `batch_shapes` calls it with the largest sizes.

    `own_rows` are the rows that a batch has in this process. The shape is that of the whole batch.
    Without an arrangement the process reads the documents of its rows only.

    packing: several prompts of a document share a decoder row (`pid_jax.data.packing`). The
    examples and subtasks of batch n are the same. Not with an arrangement.

    Batch n depends on the source, the options and n only.

    Raises UserError for an example without subtasks, a subtask without a target, and options
    out of range.
    """
    shapes = batch_shapes(
        source,
        batch_size=batch_size,
        max_prompts=max_prompts,
        arrange=arrange,
        document_multiple=document_multiple,
    )
    plan = TrainingPlan(
        source,
        batch_size=batch_size,
        seed=seed,
        max_prompts=max_prompts,
        negative_target=negative_target,
        negative_rate=negative_rate,
        window=window,
        document_multiple=document_multiple,
    )
    rows = None
    if packing:
        rows = packed_batches.row_shapes_of(source, plan.sampled(), max_prompts)
        sizes = ", ".join(f"{one.rows} x {one.row_tokens}" for one in rows)
        most = len(shapes) * len(rows)
        log.info("packed rows of a document: %s tokens, at most %d programs", sizes, most)

    def batch(step: int) -> Batch | PackedBatch:
        return _collated(
            source,
            plan.examples(step),
            lambda row, index: plan.subtasks(step, row, index),
            shapes,
            arrange,
            own_rows,
            rows,
            pad_token_id=pad_token_id,
            decoder_start_token_id=decoder_start_token_id,
        )

    return batch


def evaluation_batches(
    source: TokenSource,
    *,
    batch_size: int,
    pad_token_id: int,
    decoder_start_token_id: int,
    arrange: Arrange = as_they_are,
    own_rows: OwnRows = np.arange,
    packing: bool = False,
    document_multiple: int = 64,
) -> "Passes":
    """Every example once, in order, with all of its subtasks. Every iteration is another pass.

    Absent documents fill the last batch. Row r of batch b is example `b * batch_size + r`,
    unless `arrange` changes the rows. own_rows, packing: as in `training_stream`. Raises UserError
    for an empty source.
    """
    shapes = batch_shapes(
        source, batch_size=batch_size, arrange=arrange, document_multiple=document_multiple
    )
    starts = range(0, len(source), batch_size)

    def indices(start: int) -> Int[np.ndarray, " documents"]:
        return np.arange(start, min(start + batch_size, len(source)))

    def every_subtask(_: int, index: int) -> Int[np.ndarray, " chosen"]:
        return np.arange(source.subtask_counts[index])

    rows = None
    if packing:
        sampled = starts[:: -(-len(starts) // packed_batches.SAMPLED)]
        drawn = (drawn_of(indices(start), every_subtask) for start in sampled)
        rows = packed_batches.row_shapes_of(source, drawn, None)

    def batch(start: int) -> Batch | PackedBatch:
        return _collated(
            source,
            indices(start),
            every_subtask,
            shapes,
            arrange,
            own_rows,
            rows,
            pad_token_id=pad_token_id,
            decoder_start_token_id=decoder_start_token_id,
        )

    return Passes(starts, batch)


class Passes:
    """The batches of a split, made anew in every pass over them."""

    def __init__(self, starts: range, batch: Callable[[int], Batch | PackedBatch]) -> None:
        self._starts, self._batch = starts, batch

    def __iter__(self) -> Iterator[Batch | PackedBatch]:
        return map(self._batch, self._starts)


def batch_shapes(
    source: TokenSource,
    *,
    batch_size: int,
    max_prompts: int | None = None,
    arrange: Arrange = as_they_are,
    document_multiple: int = 64,
) -> tuple[BatchShape, ...]:
    """Every shape that batches of this source can have, the smallest first.

    The shapes differ in `document_tokens` only. Their number bounds the compilations of a run.
    Pass the `max_prompts` of `training_stream`, or None for `evaluation_batches`. Raises
    UserError for an empty source and for sizes below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is at least 1, not {batch_size}")
    if max_prompts is not None and max_prompts < 1:
        raise UserError(f"max_prompts is at least 1, not {max_prompts}")
    if not len(source):
        raise UserError("there are no examples: an empty file, or a wrong split?")
    sizes = source.statistics
    # At least one, because an arrangement by prompts needs a prompt.
    prompts = max(1, sizes.most_subtasks)
    if max_prompts is not None:
        prompts = min(prompts, max_prompts)
    largest = _filled(sizes.longest_document, prompts, sizes.longest_prompt, sizes.longest_target)
    smallest = _filled(sizes.shortest_document, 1, 0, 0)
    arranged = arrange([largest] * batch_size)
    shape = replace(
        shape_of(arranged, document_multiple=document_multiple),
        # Constant over the run, so rounding them up would only add padding.
        documents=len(arranged),
        prompts=max(len(example.prompts) for example in arranged),
    )
    lengths = [shape_of(arrange([smallest]), document_multiple=document_multiple).document_tokens]
    while lengths[-1] < shape.document_tokens:
        lengths.append(bucket(lengths[-1] + 1, multiple=document_multiple))
    return tuple(replace(shape, document_tokens=length) for length in lengths)


def largest_packed_shape(
    source: TokenSource,
    *,
    batch_size: int,
    max_prompts: int | None = None,
    document_multiple: int = 64,
) -> PackedShape:
    """The shape that every packed batch of this source fits.

    The arguments and errors are those of `batch_shapes`.
    """
    largest = batch_shapes(
        source,
        batch_size=batch_size,
        max_prompts=max_prompts,
        document_multiple=document_multiple,
    )[-1]
    rows = packed_batches.largest_row_shape(source.statistics, max_prompts)
    return PackedShape(largest.documents, largest.document_tokens, *rows)


_ENDLESS = 2**40  # batches, because Grain needs a length


def _collated(
    source: TokenSource,
    indices: Int[np.ndarray, " documents"],
    subtasks_of: SubtasksOf,
    shapes: Sequence[BatchShape],
    arrange: Arrange,
    own_rows: OwnRows,
    row_shapes: Sequence[RowShape] | None,
    *,
    pad_token_id: int,
    decoder_start_token_id: int,
) -> Batch | PackedBatch:
    """The own rows of a batch of these examples, with the sizes that the whole batch needs.

    row_shapes: those of packed batches, None to pack nothing.
    """

    def selected(row: int) -> TokenizedExample:
        index = int(indices[row])
        return source.select(index, subtasks_of(row, index))

    rows = own_rows(shapes[0].documents).tolist()
    if arrange is as_they_are:
        longest = int(source.document_lengths[indices].max(initial=0))
        if row_shapes is not None:
            return packed_batches.collated(
                source,
                drawn_of(indices, subtasks_of),
                _fitting(shapes, longest).document_tokens,
                row_shapes,
                rows,
                pad_token_id=pad_token_id,
                decoder_start_token_id=decoder_start_token_id,
            )
        examples = [selected(row) for row in rows if row < len(indices)]
    else:
        arranged = arrange([selected(row) for row in range(len(indices))])
        longest = max((len(example.document) for example in arranged), default=0)
        examples = [arranged[row] for row in rows if row < len(arranged)]
    return collate(
        examples,
        replace(_fitting(shapes, longest), documents=len(rows)),
        pad_token_id=pad_token_id,
        decoder_start_token_id=decoder_start_token_id,
    )


def _filled(document: int, prompts: int, prompt: int, target: int) -> TokenizedExample:
    """An example of these sizes with arbitrary tokens."""
    return TokenizedExample("", [0] * document, [[0] * prompt] * prompts, [[0] * target] * prompts)


def _fitting(shapes: Sequence[BatchShape], longest: int) -> BatchShape:
    """The smallest shape for documents of at most `longest` tokens."""
    # If none fits, collate raises the error.
    return next((shape for shape in shapes if shape.document_tokens >= longest), shapes[-1])

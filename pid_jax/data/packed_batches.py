"""Packed batches of a source of tokens: their sizes, from lengths alone, and their arrays.

A process computes the size of a whole batch from the lengths of its subtasks and reads the tokens
of its own documents only.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int

from pid_jax.data import row_shapes
from pid_jax.data.batching import BatchShape
from pid_jax.data.packing import PackedBatch, PackedShape, SubtaskLengths, collate_packed
from pid_jax.data.row_shapes import RowShape
from pid_jax.data.tokenizing import TokenizedExamples

log = logging.getLogger(__name__)

OwnRows = Callable[[int], Int[np.ndarray, " own"]]
"""The rows that this process has of a batch with so many rows, ascending."""

Drawn = tuple[int, Int[np.ndarray, " chosen"]]
"""An example of a batch, by its index, and the indices of its subtasks."""

SAMPLED = 64
"""The batches whose lengths decide on the sizes of rows."""

SCANNED = 1 << 16
"""In a larger source the largest size is not known from the lengths of all its examples, but from
the numbers that bound them: every prompt and target is as long as the longest."""


def row_shapes_of(
    source: TokenizedExamples, batches: Iterable[Sequence[Drawn]], most_subtasks: int | None
) -> tuple[RowShape, ...]:
    """The sizes of rows for batches like these. Every batch of the source fits the last one.

    most_subtasks: the most subtasks of an example in a batch, None for all that it has.
    """
    sampled = [_lengths(source, drawn) for drawn in batches]
    shapes = row_shapes.chosen(sampled, largest_row_shape(source, most_subtasks))
    log.info(
        "packed rows of a document: %s tokens",
        ", ".join(f"{shape.rows} x {shape.row_tokens}" for shape in shapes),
    )
    return shapes


def largest_row_shape(source: TokenizedExamples, most_subtasks: int | None) -> RowShape:
    """The size of rows that every batch of the source fits."""
    if len(source) <= SCANNED:
        every = [(i, np.arange(count)) for i, count in enumerate(source.subtask_counts)]
        return row_shapes.fitting_all(_lengths(source, every), most_subtasks)
    most = int(source.subtask_counts.max())
    count = most if most_subtasks is None else min(most, most_subtasks)
    return bounding_row_shape(count, source.longest_prompt, source.longest_target)


def bounding_row_shape(subtasks: int, prompt_tokens: int, target_tokens: int) -> RowShape:
    """The size of rows for documents with so many subtasks of these lengths, or less."""
    lengths = np.full(subtasks, prompt_tokens), np.full(subtasks, target_tokens)
    return row_shapes.fitting_all([SubtaskLengths(*lengths)], None)


def packed_shapes(
    shapes: Iterable[BatchShape], rows: Iterable[RowShape]
) -> tuple[PackedShape, ...]:
    """Every shape of packed batches: the documents of each of `shapes` with each size of rows."""
    rows = tuple(rows)
    return tuple(
        PackedShape(shape.documents, shape.document_tokens, *row)
        for shape in shapes
        for row in rows
    )


def collated(
    source: TokenizedExamples,
    drawn: Sequence[Drawn],
    document_tokens: int,
    rows: Sequence[RowShape],
    own: Sequence[int],
    *,
    pad_token_id: int,
    decoder_start_token_id: int,
) -> PackedBatch:
    """The own documents of a batch, with the sizes that the whole batch needs.

    document_tokens: of the whole batch. own: the documents of this process.
    """
    shape = row_shapes.fitting(rows, _lengths(source, drawn))
    return collate_packed(
        [source.select(*drawn[row]) for row in own if row < len(drawn)],
        PackedShape(len(own), document_tokens, *shape),
        pad_token_id=pad_token_id,
        decoder_start_token_id=decoder_start_token_id,
    )


def _lengths(source: TokenizedExamples, drawn: Sequence[Drawn]) -> list[SubtaskLengths]:
    return [SubtaskLengths(*source.subtask_lengths(*one)) for one in drawn]

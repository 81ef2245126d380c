"""Packed batches of a source of tokens: their sizes, from lengths alone, and their arrays.

A process computes the size of a whole batch from the lengths of its subtasks and reads the tokens
of its own documents only.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int

from pid_jax.data import row_shapes
from pid_jax.data.packing import PackedBatch, PackedShape, SubtaskLengths, collate_packed
from pid_jax.data.row_shapes import RowShape
from pid_jax.data.token_source import Statistics, TokenSource

OwnRows = Callable[[int], Int[np.ndarray, " own"]]
"""The rows that this process has of a batch with so many rows, ascending."""

Drawn = tuple[int, Int[np.ndarray, " chosen"]]
"""An example of a batch, by its index, and the indices of its subtasks."""

SAMPLED = 64
"""The batches whose lengths decide on the sizes of rows."""


def row_shapes_of(
    source: TokenSource, batches: Iterable[Sequence[Drawn]], most_subtasks: int | None
) -> tuple[RowShape, ...]:
    """The sizes of rows for batches like these. Every batch of the source fits the last one.

    most_subtasks: the most subtasks of an example in a batch, None for all that it has.
    """
    sampled = [_lengths(source, drawn) for drawn in batches]
    return row_shapes.chosen(sampled, largest_row_shape(source.statistics, most_subtasks))


def largest_row_shape(sizes: Statistics, most_subtasks: int | None) -> RowShape:
    """The size of rows that every batch of a source fits."""
    return row_shapes.fitting_all(sizes.segment_tokens, sizes.target_tokens, most_subtasks)


def bounding_row_shape(subtasks: int, prompt_tokens: int, target_tokens: int) -> RowShape:
    """The size of rows for documents with so many subtasks of these lengths, or less."""
    counts = np.arange(1, subtasks + 1)
    return row_shapes.fitting_all(
        (counts * (prompt_tokens + target_tokens)).tolist(), (counts * target_tokens).tolist(), None
    )


def collated(
    source: TokenSource,
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


def _lengths(source: TokenSource, drawn: Sequence[Drawn]) -> list[SubtaskLengths]:
    return [SubtaskLengths(*source.subtask_lengths(*one)) for one in drawn]

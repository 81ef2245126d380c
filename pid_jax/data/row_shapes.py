"""The sizes of packed rows: a few of them, chosen from the lengths of the data.

Each size is one more program to compile, and the rows of a batch that needs less are padded.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pid_jax.data.batching import bucket
from pid_jax.data.packing import SubtaskLengths, pack

MOST_ROW_SHAPES = 6
"""Beside the one that fits every batch. Each is a program for every length of documents."""

LEAST_SAVING = 0.02
"""A row shape that saves a smaller share of the cost of all batches is left out."""

MOST_ROW_TOKENS = 2048
"""No longer rows, unless a single segment is. The scores of self-attention grow with the square."""

LEAST_ROW_TOKENS = 64
"""No shorter rows, unless all segments fit in one: a device computes few tokens as slowly."""

DOUBLING = 8192
"""With so many tokens in its row, a token costs twice as much: attention reads the whole row.

In T5-base a layer takes 28 D² FLOPs for a token and 4 D for each key: twice as many at 5,376 keys.
"""

HEAD_SHARE = 0.25
"""What a target token costs beside its decoder token: the head of T5-base, with 12 layers."""


_DECIDING = 8
"""The documents of a batch whose rows decide on the sizes."""


class RowShape(NamedTuple):
    """The decoder's sizes of a packed batch, for each document."""

    rows: int
    row_tokens: int
    target_tokens: int

    @property
    def cost(self) -> float:
        """In decoder tokens of short rows."""
        attended = 1 + self.row_tokens / DOUBLING
        return self.rows * self.row_tokens * attended + HEAD_SHARE * self.target_tokens

    @property
    def attended(self) -> int:
        """Pairs of tokens of all rows: scores of self-attention, if they are stored."""
        return self.rows * self.row_tokens**2

    def fits(self, other: "RowShape") -> bool:
        """Whether batches that need `other`, which has rows of the same length, fit."""
        return self.rows >= other.rows and self.target_tokens >= other.target_tokens


def needed(batch: Sequence[SubtaskLengths], row_tokens: int) -> RowShape | None:
    """The smallest shape for a batch with rows of this length. None if a segment is longer."""
    rows = targets = 1
    for lengths in batch:
        segments = lengths.segments
        total = int(segments.sum())
        if total > row_tokens:
            if segments.max() > row_tokens:
                return None
            rows = max(rows, len(pack(segments.tolist(), row_tokens)))
        targets = max(targets, int(lengths.targets.sum()))
    return RowShape(rows, row_tokens, bucket(targets))


def fitting(shapes: Sequence[RowShape], batch: Sequence[SubtaskLengths]) -> RowShape:
    """The cheapest shape that a batch fits. Raises ValueError if it fits none."""
    needs = {length: needed(batch, length) for length in {shape.row_tokens for shape in shapes}}
    possible = [
        shape
        for shape in shapes
        if (need := needs[shape.row_tokens]) is not None and shape.fits(need)
    ]
    if not possible:
        raise ValueError(f"a batch that needs {needs} fits none of {shapes}")
    return min(possible, key=lambda shape: (shape.cost, shape))


def fitting_all(
    segment_tokens: Sequence[int], target_tokens: Sequence[int], most_subtasks: int | None
) -> RowShape:
    """A shape that any batch fits whose documents have at most `most_subtasks` subtasks.

    segment_tokens, target_tokens: those of `Statistics`. most_subtasks: None for all. By the bound
    of `pack`, which fewer or shorter segments do not exceed, and not by packing, which has no such
    guarantee.
    """
    count = min(len(segment_tokens), most_subtasks or len(segment_tokens))
    if count == 0:
        return RowShape(1, bucket(1), bucket(1))
    longest, total = segment_tokens[0], segment_tokens[count - 1]

    def with_rows_of(row_tokens: int) -> RowShape:
        bound = 1 if total <= row_tokens else -(-2 * total // row_tokens) - 1
        return RowShape(min(bound, count), row_tokens, bucket(target_tokens[count - 1]))

    shapes = map(with_rows_of, row_lengths(longest, total))
    return min(shapes, key=lambda shape: (shape.cost, shape))


def row_lengths(longest: int, total: int) -> list[int]:
    """The lengths that rows may have, for segments of up to `longest` and `total` in all."""
    lengths = [bucket(max(longest, min(total, LEAST_ROW_TOKENS)))]
    while lengths[-1] < min(total, MOST_ROW_TOKENS):
        lengths.append(bucket(lengths[-1] + 1))
    return lengths


def chosen(batches: Sequence[Sequence[SubtaskLengths]], largest: RowShape) -> tuple[RowShape, ...]:
    """At most `MOST_ROW_SHAPES` shapes for batches like these, and `largest`, which is the last.

    Starts with the cheapest shape of every batch and leaves out, one after another, the shape
    without which all batches cost least.
    """
    needs = [_by_length(batch) for batch in batches]
    shapes = sorted({min(need.values(), key=lambda shape: (shape.cost, shape)) for need in needs})
    # The last one has most memory, too: a run compiles it first, to know what it needs.
    shapes = [
        shape
        for shape in shapes
        if shape.cost < largest.cost and shape.attended <= largest.attended
    ]
    costs = np.array([[_cost(shape, need) for need in needs] for shape in shapes])
    costs = costs.reshape(len(shapes), len(needs))
    of_largest = np.full((1, len(needs)), largest.cost)
    while shapes:
        without = _cheapest_without(np.concatenate([costs, of_largest]))[:-1]
        now = np.concatenate([costs, of_largest]).min(axis=0).sum()
        index = int(np.argmin(without))
        if len(shapes) <= MOST_ROW_SHAPES and without[index] > (1 + LEAST_SAVING) * now:
            break
        del shapes[index]
        costs = np.delete(costs, index, axis=0)
    return (*shapes, largest)


def _by_length(batch: Sequence[SubtaskLengths]) -> dict[int, RowShape]:
    """What a batch needs with each length of rows, as its largest documents say.

    Packing all documents of large batches would take seconds.
    """
    segments = [lengths.segments for lengths in batch]
    totals = [int(one.sum()) for one in segments]
    longest = max((int(one.max(initial=1)) for one in segments), default=1)
    targets = max((int(lengths.targets.sum()) for lengths in batch), default=1)
    order = sorted(range(len(batch)), key=lambda document: -totals[document])
    largest = [batch[document] for document in order[:_DECIDING]]
    needs = {}
    for length in row_lengths(longest, max(totals, default=1)):
        shape = needed(largest, length)
        if shape is not None:
            needs[length] = shape._replace(target_tokens=bucket(max(targets, 1)))
    return needs


def _cost(shape: RowShape, needs: dict[int, RowShape]) -> float:
    """What a batch with these needs costs at a shape. Infinite if it does not fit.

    Longer rows than any in `needs` hold every document in one row.
    """
    longest = max(needs)
    need = needs.get(shape.row_tokens)
    if need is None and shape.row_tokens > longest:
        need = needs[longest]
    return shape.cost if need is not None and shape.fits(need) else np.inf


def _cheapest_without(costs: Float[np.ndarray, "shapes batches"]) -> Float[np.ndarray, " shapes"]:
    """The cost of all batches without each of the shapes."""
    order = np.argsort(costs, axis=0, kind="stable")
    first, second = (np.take_along_axis(costs, order[rank : rank + 1], 0)[0] for rank in (0, 1))
    is_first = np.arange(len(costs))[:, None] == order[0]
    return np.where(is_first, second, first).sum(axis=1)

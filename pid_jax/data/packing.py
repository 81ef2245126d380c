"""Packing: several prompts of one document, each with its target, in one decoder row.

A segment is the decoder's input for one subtask: the start token, the prompt, and the target
without its last token. A row has segments one after another. Its tokens see their own segment
only, and every segment counts positions from 0. All rows belong to the same document, so
cross-attention needs no mask between segments.

Letters beside those of `pid_jax.models.protocol`: R rows of a document. L is the number of tokens
of a row, T the number of target tokens of a document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pid_jax.data.batching import Arr, RealTokens, collate_documents
from pid_jax.data.tokenizing import TokenizedExample


class PackedBatch(NamedTuple):
    """B documents with R rows of segments each, padded; a pytree of NumPy or JAX arrays.

    A subtask without a target has no segment. An absent document has padding only.
    """

    documents: Int[Arr, "B S"]  # right-padded
    document_mask: Bool[Arr, "B S"]
    tokens: Int[Arr, "B R L"]
    segments: Int[Arr, "B R L"]
    """1 + the index of the token's subtask in its example. 0 for padding."""
    positions: Int[Arr, "B R L"]
    """Of each token in its segment, 0 at the start token and at padding."""
    predicting: Int[Arr, "B T"]
    """For each target token the index, in the document's R * L tokens, of the one before it."""
    targets: Int[Arr, "B T"]  # end tokens included
    target_mask: Bool[Arr, "B T"]  # True where the loss counts

    @property
    def shape(self) -> "PackedShape":
        """The sizes of the arrays, including padding."""
        documents, document_tokens = self.documents.shape
        _, rows, row_tokens = self.tokens.shape
        return PackedShape(documents, document_tokens, rows, row_tokens, self.targets.shape[1])

    @property
    def real_tokens(self) -> RealTokens:
        """The numbers of tokens that are not padding. For a batch on the host."""
        return RealTokens(int(self.document_mask.sum()), int((self.segments > 0).sum()))


@dataclass(frozen=True, slots=True)
class PackedShape:
    """The five sizes that determine a compiled program."""

    documents: int  # B
    document_tokens: int  # S
    rows: int  # R
    row_tokens: int  # L
    target_tokens: int  # T, of a document

    @property
    def decoder_tokens(self) -> int:
        """The decoder's tokens in a batch, padding included."""
        return self.documents * self.rows * self.row_tokens

    def __str__(self) -> str:
        return (
            f"{self.documents} documents of {self.document_tokens} tokens, "
            f"{self.rows} packed rows of {self.row_tokens}, targets of {self.target_tokens}"
        )


def part_of(batch: PackedBatch, rows: slice) -> PackedBatch:
    """Some rows of a batch on the host, with the target tokens that they predict."""
    row_tokens = batch.tokens.shape[2]
    first, end, _ = rows.indices(batch.tokens.shape[1])
    predicting = batch.predicting - first * row_tokens
    inside = (predicting >= 0) & (predicting < (end - first) * row_tokens)
    return batch._replace(
        tokens=batch.tokens[:, rows],
        segments=batch.segments[:, rows],
        positions=batch.positions[:, rows],
        predicting=np.where(inside, predicting, 0),
        target_mask=batch.target_mask & inside,
    )


def sums_by_subtask(
    batch: PackedBatch, values: Float[np.ndarray, "B T"], subtasks: int
) -> Float[np.ndarray, "B {subtasks}"]:
    """The sum of the values of each subtask's target tokens, for a batch on the host.

    subtasks: the most of an example.
    """
    segments = np.asarray(batch.segments).reshape(len(batch.targets), -1)
    own = np.take_along_axis(segments, np.asarray(batch.predicting), axis=1) * batch.target_mask
    sums = np.zeros((len(own), 1 + subtasks))
    np.add.at(sums, (np.arange(len(own))[:, None], own), np.where(own > 0, values, 0.0))
    return sums[:, 1:]


class SubtaskLengths(NamedTuple):
    """The lengths of some subtasks of one document, in tokens."""

    prompts: Int[np.ndarray, " subtasks"]
    targets: Int[np.ndarray, " subtasks"]
    """End tokens included. 0 for no target."""

    @property
    def segments(self) -> Int[np.ndarray, " subtasks"]:
        """The tokens of each segment. 0 for a subtask without a target, which has none."""
        return np.where(self.targets > 0, self.prompts + self.targets, 0)


def lengths_of(example: TokenizedExample) -> SubtaskLengths:
    """The lengths of all subtasks of an example."""
    return SubtaskLengths(
        np.array([len(prompt) for prompt in example.prompts], np.int64),
        np.array([len(target) for target in example.targets], np.int64),
    )


def pack(segments: Sequence[int], row_tokens: int) -> list[list[int]]:
    """First-fit decreasing: the indices of the segments of each row, in order of the row.

    Segments of no tokens are left out. Raises ValueError for a segment longer than a row. Rows i
    and j have more than `row_tokens` tokens together. So with W tokens in all there are fewer than
    2 W / row_tokens rows, or one.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(segments)), key=lambda index: -segments[index]):
        length = int(segments[index])
        if length == 0:
            break
        if length > row_tokens:
            raise ValueError(f"a segment of {length} tokens does not fit a row of {row_tokens}")
        row = next((row for row, room in enumerate(free) if room >= length), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(row_tokens)
        rows[row].append(index)
        free[row] -= length
    return rows


def collate_packed(
    examples: Sequence[TokenizedExample],
    shape: PackedShape,
    *,
    pad_token_id: int,
    decoder_start_token_id: int,
    row_tokens: Sequence[int] | None = None,
) -> PackedBatch:
    """Packs and pads the examples to one batch of exactly this shape.

    Document i is `examples[i]`. Further documents are absent. Never truncates: raises ValueError
    for examples that do not fit. row_tokens: for each example a length of rows with which it fits,
    where it may not fit the longer rows of the shape: first-fit decreasing has no guarantee that
    longer rows are not more.
    """
    documents, document_mask = collate_documents(
        examples, shape.documents, shape.document_tokens, pad_token_id
    )
    of_rows = shape.documents, shape.rows, shape.row_tokens
    tokens = np.full(of_rows, pad_token_id, np.int32)
    segments, positions = np.zeros(of_rows, np.int32), np.zeros(of_rows, np.int32)
    predicting = np.zeros((shape.documents, shape.target_tokens), np.int32)
    targets = np.full(predicting.shape, pad_token_id, np.int32)
    target_mask = np.zeros(predicting.shape, bool)
    for document, example in enumerate(examples):
        lengths = lengths_of(example)
        rows = pack(lengths.segments.tolist(), shape.row_tokens)
        if len(rows) > shape.rows and row_tokens is not None:
            rows = pack(lengths.segments.tolist(), row_tokens[document])
        if len(rows) > shape.rows or sum(map(len, example.targets)) > shape.target_tokens:
            raise ValueError(
                f"example {example.id!r} does not fit into {shape}: it has {len(rows)} rows of "
                f"segments and {sum(map(len, example.targets))} target tokens"
            )
        done = 0
        for row, subtask, start in _placed(rows, lengths):
            prompt, target = example.prompts[subtask], example.targets[subtask]
            segment = [decoder_start_token_id, *prompt, *target[:-1]]
            here = document, row, slice(start, start + len(segment))
            tokens[here] = segment
            segments[here] = 1 + subtask
            positions[here] = np.arange(len(segment))
            of_target = document, slice(done, done + len(target))
            first = row * shape.row_tokens + start + len(prompt)
            predicting[of_target] = np.arange(first, first + len(target))
            targets[of_target] = target
            target_mask[of_target] = True
            done += len(target)
    return PackedBatch(
        documents, document_mask, tokens, segments, positions, predicting, targets, target_mask
    )


def _placed(rows: list[list[int]], lengths: SubtaskLengths) -> Iterator[tuple[int, int, int]]:
    """The row, the index and the first slot of each segment, in order of the subtasks."""
    segments = lengths.segments
    placed = []
    for row, subtasks in enumerate(rows):
        starts = np.cumsum([0, *segments[subtasks]]).tolist()
        placed += [(subtask, row, start) for subtask, start in zip(subtasks, starts, strict=False)]
    for subtask, row, start in sorted(placed):
        yield row, subtask, start

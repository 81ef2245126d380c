"""Tokenized examples: a data set as token ids, truncated to limits."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import overload

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.examples import Example
from pid_jax.data.limits import Limits, TargetReport, TruncationReport, cut_document, cut_target
from pid_jax.data.token_source import Lacking, LongestSubtasks, Statistics, TokenizedExample
from pid_jax.data.tokenizer import (
    Tokenizer,
    encode_document,
    encode_prompt,
    encode_target,
    encode_texts,
    leading_tokens,
    special_tokens_around,
    train_tokenizer,
)
from pid_jax.errors import UserError

__all__ = [
    "Limits",
    "TargetReport",
    "TokenizedExample",
    "TokenizedExamples",
    "Tokenizer",
    "TruncationReport",
    "checked_edges",
    "encode_document",
    "encode_prompt",
    "encode_target",
    "leading_tokens",
    "train_tokenizer",
]


class TokenizedExamples(Sequence[TokenizedExample]):
    """A data set as token ids, truncated to the limits.

    The constructor tokenizes every document and every distinct prompt and target once and stores
    them in compact arrays, because most documents have the same prompts and most targets repeat.
    Truncation and all batch shapes are therefore known before the first step.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        tokenizer: Tokenizer,
        limits: Limits,
        *,
        end_token_id: int,
        text_of: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """Reads every example once.

        end_token_id: appended to every target. text_of: decodes token ids, for `target_report`.
        Raises UserError if `limits.document_tokens` admits special tokens only.
        """
        self.limits = limits
        self.ids: list[str] = []
        counts: list[int] = []
        prompts: dict[str, int] = {}
        targets: dict[str, int] = {}
        prompt_rows: list[int] = []
        target_rows: list[int] = []
        free = array("b")

        def documents() -> Iterator[str]:
            for example in examples:
                self.ids.append(example.id)
                counts.append(len(example.subtasks))
                for subtask in example.subtasks:
                    free.append(subtask.allowed is None)
                    prompt_rows.append(prompts.setdefault(subtask.prompt, len(prompts)))
                    target_rows.append(
                        _NO_TARGET
                        if subtask.target is None
                        else targets.setdefault(subtask.target, len(targets))
                    )
                yield example.document

        edges = checked_edges(tokenizer, limits)
        self.leading = leading_tokens(tokenizer)
        """The special tokens at the start of every document."""
        self._documents = _Rows(
            encode_texts(tokenizer, documents(), special_tokens=True),
            lambda ids: cut_document(ids, limits, edges),
        )
        # This has read every example once, a portion at a time.
        self._starts = _starts(counts)
        self._prompt_rows = np.array(prompt_rows, np.int64)
        self._target_rows = np.array(target_rows, np.int64)
        self._prompts = _Rows(
            encode_texts(tokenizer, prompts, special_tokens=False),
            lambda ids: ids[: limits.prompt_tokens],
        )
        self._free = np.array(free, bool)
        self._changed: dict[int, tuple[str, str]] = {}
        """Targets that decoding changes, by row, each with the decoded text."""

        def target_tokens() -> Iterator[list[int]]:
            encoded = encode_texts(tokenizer, targets, special_tokens=False)
            for row, (target, ids) in enumerate(zip(targets, encoded, strict=True)):
                if text_of is not None and (back := text_of(ids)) != target:
                    self._changed[row] = target, back
                yield [*ids, end_token_id]

        self._targets = _Rows(target_tokens(), lambda ids: cut_target(ids, limits))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.select(index, np.arange(self.subtask_counts[index]))

    def select(self, index: int, subtasks: Int[np.ndarray, " chosen"]) -> TokenizedExample:
        """The example with these of its subtasks only, in this order (0 is its first subtask)."""
        rows = self._starts[index] + subtasks
        return TokenizedExample(
            id=self.ids[index],
            document=self._documents[index],
            prompts=[self._prompts[row] for row in self._prompt_rows[rows].tolist()],
            targets=[
                [] if row == _NO_TARGET else self._targets[row]
                for row in self._target_rows[rows].tolist()
            ],
        )

    @property
    def tokens(self) -> Int[np.ndarray, " distinct"]:
        """Every distinct token id in the data set, sorted."""
        parts = self._documents, self._prompts, self._targets
        return np.unique(np.concatenate([np.unique(rows.tokens) for rows in parts]))

    @property
    def document_lengths(self) -> Int[np.ndarray, " examples"]:
        return self._documents.lengths

    @cached_property
    def subtask_counts(self) -> Int[np.ndarray, " examples"]:
        return np.diff(self._starts)

    def subtask_lengths(
        self, index: int, subtasks: Int[np.ndarray, " chosen"]
    ) -> tuple[Int[np.ndarray, " chosen"], Int[np.ndarray, " chosen"]]:
        """The tokens of the prompts and targets of these subtasks. 0 for no target."""
        rows = self._starts[index] + subtasks
        targets = self._target_rows[rows]
        lengths = np.zeros(len(rows), np.int64)
        lengths[targets != _NO_TARGET] = self._targets.lengths[targets[targets != _NO_TARGET]]
        return self._prompts.lengths[self._prompt_rows[rows]], lengths

    def targets_equal(self, index: int, target: Sequence[int]) -> Bool[np.ndarray, " subtasks"]:
        """True for the subtasks of an example that have this target (with its end token)."""
        rows = self._target_rows[self._starts[index] : self._starts[index + 1]]
        return np.isin(rows, self._rows_of_target(tuple(target)))

    @cached_property
    def _rows_of_target(self) -> Callable[[tuple[int, ...]], list[int]]:
        """The rows that have a target. Different texts may be equal after truncation."""

        @lru_cache(maxsize=16)
        def rows_of(target: tuple[int, ...]) -> list[int]:
            wanted = list(target)
            return [row for row in range(len(self._targets)) if self._targets[row] == wanted]

        return rows_of

    @cached_property
    def statistics(self) -> Statistics:
        """What is known of the data set as a whole."""
        lengths, counts = self.document_lengths, self.subtask_counts
        (without_subtask,) = np.nonzero(counts == 0)
        (without_target,) = np.nonzero(self._target_rows == _NO_TARGET)
        first = np.searchsorted(self._starts[1:], without_target[:1], side="right")
        subtasks = LongestSubtasks()
        for index, count in enumerate(counts.tolist()):
            prompts, targets = self.subtask_lengths(index, np.arange(count))
            subtasks.add(prompts.tolist(), targets.tolist())
        return Statistics(
            examples=len(self),
            subtasks=len(self._prompt_rows),
            shortest_document=int(lengths.min(initial=lengths.max(initial=0))),
            longest_document=int(lengths.max(initial=0)),
            most_subtasks=int(counts.max(initial=0)),
            longest_prompt=int(self._prompts.lengths.max(initial=0)),
            longest_target=int(self._targets.lengths.max(initial=0)),
            segment_tokens=subtasks.segment_tokens,
            target_tokens=subtasks.target_tokens,
            without_subtask=self._lacking(len(without_subtask), without_subtask),
            without_target=self._lacking(len(without_target), first),
            tokens=tuple(self.tokens.tolist()),
            truncation=self.truncation_report(),
            targets=self.target_report(),
        )

    def _lacking(self, count: int, indices: Int[np.ndarray, " examples"]) -> Lacking:
        return Lacking(count, self.ids[indices[0]] if len(indices) else "")

    def lengths_before_cutting(self) -> dict[str, Int[np.ndarray, " texts"]]:
        """Token counts before truncation, with special and end tokens.

        The keys are "documents", "prompts" and "targets". Prompts and targets count once per
        subtask.
        """
        return {
            "documents": self._documents.lengths_before,
            "prompts": self._prompts.lengths_before[self._prompt_rows],
            "targets": self._targets.lengths_before[self._targets_of_subtasks],
        }

    @property
    def _targets_of_subtasks(self) -> Int[np.ndarray, " subtasks_with_target"]:
        return self._target_rows[self._target_rows != _NO_TARGET]

    def target_report(self) -> TargetReport:
        """How many targets decoding changes. Needs `text_of`, else none."""
        rows = self._target_rows[self._free & (self._target_rows != _NO_TARGET)]
        changed = rows[np.isin(rows, list(self._changed))]
        first = self._changed[int(changed[0])] if len(changed) else None
        return TargetReport(len(rows), len(changed), first)

    def truncation_report(self) -> TruncationReport:
        """How much the limits removed."""
        targets = self._targets_of_subtasks
        return TruncationReport(
            limits=self.limits,
            documents=len(self),
            documents_cut=int(self._documents.cut.sum()),
            longest_document=self._documents.longest_before,
            prompts=len(self._prompt_rows),
            prompts_cut=int(self._prompts.cut[self._prompt_rows].sum()),
            longest_prompt=self._prompts.longest_before,
            targets=len(targets),
            targets_cut=int(self._targets.cut[targets].sum()),
            longest_target=self._targets.longest_before,
        )


def checked_edges(tokenizer: Tokenizer, limits: Limits) -> tuple[int, int]:
    """The special tokens before and after a document.

    Raises UserError if `limits.document_tokens` admits special tokens only.
    """
    edges = special_tokens_around(tokenizer)
    if limits.document_tokens <= sum(edges):
        raise UserError(
            f"document_tokens is {limits.document_tokens}, which leaves no space for text: "
            f"the tokenizer adds {sum(edges)} special tokens to every document"
        )
    return edges


_NO_TARGET = -1


class _Rows:
    """Rows of token ids of different lengths in one array, at 4 bytes a token instead of 36."""

    def __init__(
        self, rows: Iterable[Sequence[int]], cut: Callable[[Sequence[int]], Sequence[int]]
    ) -> None:
        tokens = array("i")
        lengths, lengths_before = [], []
        for row in rows:
            truncated = cut(row)
            tokens.extend(truncated)
            lengths.append(len(truncated))
            lengths_before.append(len(row))
        self.tokens = np.array(tokens, np.int32)
        self._starts = _starts(lengths)
        self.lengths = np.array(lengths, np.int64)
        self.lengths_before = np.array(lengths_before, np.int64)
        self.cut = self.lengths < self.lengths_before

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest_before(self) -> int:
        return int(self.lengths_before.max(initial=0))

    def __getitem__(self, row: int) -> list[int]:
        tokens: list[int] = self.tokens[self._starts[row] : self._starts[row + 1]].tolist()
        return tokens


def _starts(lengths: Sequence[int]) -> Int[np.ndarray, " rows_and_end"]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

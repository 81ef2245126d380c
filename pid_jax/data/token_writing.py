"""Writes a data set as token ids to disk, a portion at a time."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Bool

from pid_jax.data.examples import Example, Subtask
from pid_jax.data.limits import Limits, TargetReport, TruncationReport, cut_document, cut_target
from pid_jax.data.token_files import FORMAT, INDEX, RECORDS, encoded, entry, write_about
from pid_jax.data.token_source import Lacking, LongestSubtasks, Statistics
from pid_jax.data.tokenizer import Tokenizer, encode_texts, leading_tokens
from pid_jax.data.tokenizing import checked_edges
from pid_jax.errors import UserError

_EXAMPLES_AT_ONCE = 1024
_MOST_CHARACTERS = 2**23
"""Of texts whose token ids stay in memory, because most prompts and targets repeat."""


def write(
    directory: Path,
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    vocabulary: int,
    end_token_id: int,
    text_of: Callable[[Sequence[int]], str] | None = None,
    digest: Callable[[], str] = str,
    key: Mapping[str, Any] | None = None,
) -> None:
    """Writes the files of `StoredTokens` to an empty directory, tokens.json last.

    Reads every example once. Memory use does not depend on their number. vocabulary: a number above
    all token ids. end_token_id, text_of: as for `TokenizedExamples`. digest: the digest of the
    texts, called at the end. key: JSON that says what was tokenized. Raises UserError as
    `TokenizedExamples` does, and OSError if writing fails.
    """
    dtype = np.dtype("<u2" if vocabulary <= 2**16 else "<i4")
    edges = checked_edges(tokenizer, limits)
    seen = np.zeros(vocabulary, bool)
    prompts = _Texts(tokenizer, dtype, seen, lambda ids: ids[: limits.prompt_tokens])
    targets = _Texts(
        tokenizer, dtype, seen, lambda ids: cut_target(ids, limits), end_token_id, text_of
    )
    totals = _Totals()
    with (
        _DigestedFile(directory / INDEX) as index,
        _DigestedFile(directory / RECORDS) as records,
    ):
        remaining = iter(examples)
        while portion := list(islice(remaining, _EXAMPLES_AT_ONCE)):
            subtasks = [subtask for example in portion for subtask in example.subtasks]
            prompts.learn(subtask.prompt for subtask in subtasks)
            targets.learn(subtask.target for subtask in subtasks if subtask.target is not None)
            documents = encode_texts(
                tokenizer, (example.document for example in portion), special_tokens=True
            )
            for example, ids in zip(portion, documents, strict=True):
                document = _Encoded.of(ids, cut_document(ids, limits, edges), dtype, seen)
                of_prompts = [prompts.of(subtask.prompt) for subtask in example.subtasks]
                of_targets = [
                    None if subtask.target is None else targets.of(subtask.target)
                    for subtask in example.subtasks
                ]
                number = totals.number["documents"]
                record = encoded(
                    number,
                    example.id,
                    document.tokens,
                    [prompt.tokens for prompt in of_prompts],
                    [None if target is None else target.tokens for target in of_targets],
                    dtype,
                )
                index.write(
                    entry(number, records.size, len(record), document.length, len(of_prompts))
                )
                records.write(record)
                totals.add(example, document, of_prompts, of_targets)
    write_about(
        directory,
        {
            "format": FORMAT,
            "key": dict(key or {}),
            "digest": digest(),
            "dtype": dtype.str,
            "leading": leading_tokens(tokenizer),
            "statistics": totals.statistics(limits, seen).to_json(),
            "files": {
                name: {"bytes": file.size, "sha256": file.sha256}
                for name, file in ((INDEX, index), (RECORDS, records))
            },
        },
    )


class _Encoded(NamedTuple):
    """A text as token ids, after truncation."""

    tokens: bytes
    length: int
    length_before: int
    changed: tuple[str, str] | None = None
    """A target that decoding changes, and the decoded text."""

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        truncated: Sequence[int],
        dtype: np.dtype[Any],
        seen: Bool[np.ndarray, " vocabulary"],
        changed: tuple[str, str] | None = None,
    ) -> Self:
        """Marks the token ids in `seen`. Raises UserError for ids above it."""
        if max(truncated, default=0) >= len(seen):
            raise UserError(
                f"the tokenizer produced the token id {max(truncated)}, but it and the model have "
                f"{len(seen)} tokens: is this the tokenizer of the model?"
            )
        tokens = np.array(truncated, dtype)
        seen[tokens] = True
        return cls(tokens.tobytes(), len(truncated), len(ids), changed)


class _Texts:
    """Encodes prompts or targets, each distinct text once as long as it stays in memory."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        dtype: np.dtype[Any],
        seen: Bool[np.ndarray, " vocabulary"],
        cut: Callable[[Sequence[int]], Sequence[int]],
        end_token_id: int | None = None,
        text_of: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._tokenizer, self._dtype, self._seen = tokenizer, dtype, seen
        self._cut, self._text_of = cut, text_of
        self._end = [] if end_token_id is None else [end_token_id]
        self._known: dict[str, _Encoded] = {}
        self._characters = 0

    def learn(self, texts: Iterable[str]) -> None:
        """Encodes these texts for `of`, which forgets all others in the course of time."""
        if self._characters > _MOST_CHARACTERS:
            self._known.clear()
            self._characters = 0
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        rows = encode_texts(self._tokenizer, new, special_tokens=False)
        for text, ids in zip(new, rows, strict=True):
            self._known[text] = self._encoded(text, ids)
            self._characters += len(text)

    def of(self, text: str) -> _Encoded:
        """The token ids of a text that was learned."""
        return self._known[text]

    def _encoded(self, text: str, ids: list[int]) -> _Encoded:
        changed = None
        if self._text_of is not None and (back := self._text_of(ids)) != text:
            changed = text, back
        whole = [*ids, *self._end]
        return _Encoded.of(whole, self._cut(whole), self._dtype, self._seen, changed)


class _Totals:
    """What `Statistics` needs, summed over examples."""

    def __init__(self) -> None:
        # By "documents", "prompts" and "targets".
        self.number: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()
        self._longest: Counter[str] = Counter()
        self._longest_before: Counter[str] = Counter()
        self._shortest_document: int | None = None
        self._most_subtasks = 0
        self._subtasks = LongestSubtasks()
        self._without_subtask = self._without_target = Lacking()
        self._free = self._changed = 0
        self._first_changed: tuple[str, str] | None = None

    def add(
        self,
        example: Example,
        document: _Encoded,
        prompts: Sequence[_Encoded],
        targets: Sequence[_Encoded | None],
    ) -> None:
        """Adds an example."""
        self._add("documents", document)
        if self._shortest_document is None or document.length < self._shortest_document:
            self._shortest_document = document.length
        self._most_subtasks = max(self._most_subtasks, len(example.subtasks))
        self._subtasks.add(
            [prompt.length for prompt in prompts],
            [0 if target is None else target.length for target in targets],
        )
        if not example.subtasks:
            self._without_subtask = _one_more(self._without_subtask, example)
        for subtask, prompt, target in zip(example.subtasks, prompts, targets, strict=True):
            self._add("prompts", prompt)
            self._add("targets", target)
            if target is None:
                self._without_target = _one_more(self._without_target, example)
            else:
                self._add_decoded(subtask, target)

    def _add(self, what: str, text: _Encoded | None) -> None:
        if text is None:
            return
        self.number[what] += 1
        self._cut[what] += text.length < text.length_before
        if text.length > self._longest[what]:
            self._longest[what] = text.length
        if text.length_before > self._longest_before[what]:
            self._longest_before[what] = text.length_before

    def _add_decoded(self, subtask: Subtask, target: _Encoded) -> None:
        if subtask.allowed is None:
            self._free += 1
            if target.changed is not None:
                self._changed += 1
                self._first_changed = self._first_changed or target.changed

    def statistics(self, limits: Limits, seen: Bool[np.ndarray, " vocabulary"]) -> Statistics:
        """The statistics of all examples so far."""
        number, cut, before = self.number, self._cut, self._longest_before
        return Statistics(
            examples=number["documents"],
            subtasks=number["prompts"],
            shortest_document=self._shortest_document or 0,
            longest_document=self._longest["documents"],
            most_subtasks=self._most_subtasks,
            longest_prompt=self._longest["prompts"],
            longest_target=self._longest["targets"],
            segment_tokens=self._subtasks.segment_tokens,
            target_tokens=self._subtasks.target_tokens,
            without_subtask=self._without_subtask,
            without_target=self._without_target,
            tokens=tuple(np.flatnonzero(seen).tolist()),
            truncation=TruncationReport(
                limits=limits,
                **{what: number[what] for what in ("documents", "prompts", "targets")},
                **{f"{what}_cut": cut[what] for what in ("documents", "prompts", "targets")},
                longest_document=before["documents"],
                longest_prompt=before["prompts"],
                longest_target=before["targets"],
            ),
            targets=TargetReport(self._free, self._changed, self._first_changed),
        )


def _one_more(lacking: Lacking, example: Example) -> Lacking:
    return Lacking(lacking.count + 1, lacking.first if lacking.count else example.id)


class _DigestedFile:
    """A new file with the SHA-256 of what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=2**20)
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.size += len(content)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

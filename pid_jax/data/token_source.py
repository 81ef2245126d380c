"""The interface of data sets as token ids, in memory or on disk, and the statistics of one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.limits import Limits, TargetReport, TruncationReport


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """An example as token ids: one document, and a prompt and a target per subtask.

    `prompts[i]` and `targets[i]` belong to subtask i. Nothing contains the decoder start token.
    A target ends with the end token. A subtask without a target has an empty one. Raises
    ValueError if the numbers of prompts and targets differ.
    """

    id: str
    document: Sequence[int]
    prompts: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.targets):
            raise ValueError(
                f"example {self.id!r} has {len(self.prompts)} prompts "
                f"but {len(self.targets)} targets"
            )


@dataclass(frozen=True, slots=True)
class Lacking:
    """How many examples or subtasks lack something, and the id of the first such example."""

    count: int = 0
    first: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of a data set as a whole. Lengths are in tokens, after truncation."""

    examples: int
    subtasks: int
    shortest_document: int
    longest_document: int
    most_subtasks: int
    longest_prompt: int
    longest_target: int
    segment_tokens: tuple[int, ...]
    """Entry k - 1: the decoder tokens of the k longest subtasks with a target of an example, the
    most of all examples."""
    target_tokens: tuple[int, ...]
    """The same of targets."""
    without_subtask: Lacking
    """Examples."""
    without_target: Lacking
    """Subtasks."""
    tokens: tuple[int, ...]
    """Every distinct token id, ascending."""
    truncation: TruncationReport
    targets: TargetReport

    def to_json(self) -> dict[str, Any]:
        """The statistics as an object for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Statistics":
        """Reverses `to_json`."""
        targets = dict(content["targets"])
        if targets["first"] is not None:
            targets["first"] = tuple(targets["first"])
        truncation = dict(content["truncation"])
        truncation["limits"] = Limits(**truncation["limits"])
        return cls(
            **{
                **content,
                "without_subtask": Lacking(**content["without_subtask"]),
                "without_target": Lacking(**content["without_target"]),
                **{name: tuple(content[name]) for name in _TUPLES},
                "truncation": TruncationReport(**truncation),
                "targets": TargetReport(**targets),
            }
        )


_TUPLES = ("tokens", "segment_tokens", "target_tokens")


class LongestSubtasks:
    """Collects `segment_tokens` and `target_tokens` of `Statistics`."""

    def __init__(self) -> None:
        self.segment_tokens: tuple[int, ...] = ()
        self.target_tokens: tuple[int, ...] = ()

    def add(self, prompts: Sequence[int], targets: Sequence[int]) -> None:
        """Adds an example: the tokens of its prompts and of its targets (0 for none)."""
        segments = [
            prompt + target if target else 0
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        self.segment_tokens = _most(self.segment_tokens, segments)
        self.target_tokens = _most(self.target_tokens, targets)


def _most(known: tuple[int, ...], lengths: Sequence[int]) -> tuple[int, ...]:
    """The sums of the 1, 2, ... largest lengths, where they exceed those that are known."""
    sums = tuple(accumulate(sorted(lengths, reverse=True)))
    shorter, longer = sorted((known, sums), key=len)
    last = shorter[-1:] or (0,)
    padded = shorter + last * (len(longer) - len(shorter))
    return tuple(map(max, longer, padded))


class Column(Protocol):
    """One number for each example, in order. A NumPy array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any:
        """The numbers of a slice or of an array of indices as an array, or that of one index."""

    def __iter__(self) -> Iterator[int]: ...


class TokenSource(Protocol):
    """A data set as token ids, truncated to limits, with random access."""

    @property
    def leading(self) -> list[int]:
        """The special tokens at the start of every document."""

    @property
    def statistics(self) -> Statistics: ...

    @property
    def document_lengths(self) -> Column: ...

    @property
    def subtask_counts(self) -> Column: ...

    def __len__(self) -> int: ...

    def select(self, index: int, subtasks: Int[np.ndarray, " chosen"]) -> TokenizedExample:
        """The example with these of its subtasks only, in this order (0 is its first subtask)."""

    def subtask_lengths(
        self, index: int, subtasks: Int[np.ndarray, " chosen"]
    ) -> tuple[Int[np.ndarray, " chosen"], Int[np.ndarray, " chosen"]]:
        """The tokens of the prompts and targets of these subtasks. 0 for no target."""

    def targets_equal(self, index: int, target: Sequence[int]) -> Bool[np.ndarray, " subtasks"]:
        """True for the subtasks of an example that have this target (with its end token)."""

"""Which examples went worst, for any task.

A task scores a whole set. For looking at single examples, predictions are compared as texts: a
prediction differs if it is none of the right answers, white space at the ends aside, and is worth
the words that it shares with the nearest of them; an empty one says what the negative target says.
What a task's score forgives may differ.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from pid_jax.data.examples import Example, Subtask
from pid_jax.metrics.squad import token_f1
from pid_jax.scoring import Answer


@dataclass(frozen=True)
class Compared:
    """A subtask with its prediction."""

    subtask: Subtask
    answer: Answer
    right: tuple[str, ...]
    """The right answers, each once; empty if none is known."""
    negative_target: str | None

    @property
    def said(self) -> str:
        """What the prediction means."""
        return self.answer.text.strip() or self.negative_target or ""

    @property
    def differs(self) -> bool:
        return bool(self.right) and all(self.said != text.strip() for text in self.right)

    @property
    def overlap(self) -> float:
        """Token F1 with the nearest right answer, in [0, 1]; 1 where nothing differs."""
        if not self.differs:
            return 1.0
        return max(token_f1(self.said, text) for text in self.right)


@dataclass(frozen=True)
class ComparedExample:
    """An example with its predictions. Those that are worse have a lower `rank`."""

    example: Example
    subtasks: tuple[Compared, ...]
    rank: tuple[float, float]

    @property
    def differing(self) -> int:
        return sum(one.differs for one in self.subtasks)


def worst(
    examples: Sequence[Example],
    answers: Sequence[Sequence[Answer]],
    negative_target: str | None,
    *,
    most: int,
) -> tuple[list[ComparedExample], int]:
    """The worst examples, at most `most`, and how many have a prediction that differs.

    The lowest mean overlap first, and of equal ones the lowest score of a differing prediction.
    """
    total = 0

    def counted() -> Iterator[ComparedExample]:
        nonlocal total
        for example, row in zip(examples, answers, strict=True):
            compared = _compared(example, row, negative_target)
            if compared is not None:
                total += 1
                yield compared

    return heapq.nsmallest(most, counted(), key=lambda one: one.rank), total


def _compared(
    example: Example, answers: Sequence[Answer], negative_target: str | None
) -> ComparedExample | None:
    subtasks = tuple(
        Compared(subtask, answer, _right(subtask), negative_target)
        for subtask, answer in zip(example.subtasks, answers, strict=True)
    )
    scores = [one.answer.score or 0.0 for one in subtasks if one.differs]
    if not scores:
        return None
    return ComparedExample(example, subtasks, (fmean(s.overlap for s in subtasks), min(scores)))


def _right(subtask: Subtask) -> tuple[str, ...]:
    if subtask.references:
        return tuple(dict.fromkeys(subtask.references))
    return () if subtask.target is None else (subtask.target,)

"""What a data set is made of: documents, and the subtasks asked of each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subtask:
    """One prompt and its target.

    `id` is unique within its example. `target` is None where only a prediction is wanted.
    `allowed` are the only predictions there may be; None where any text may.
    `references` are what a score compares with, where that is not the target alone: all answers
    that are right, none where "no answer" is. `traits` are what else a score must know of it, in
    words of the task's own.
    """

    id: str
    prompt: str
    target: str | None = None
    allowed: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = None
    traits: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One document and everything asked of it. `id` is unique within its split."""

    id: str
    document: str
    subtasks: tuple[Subtask, ...]

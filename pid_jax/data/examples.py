"""Examples: documents and their subtasks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subtask:
    """One prompt and its target.

    `id` is unique within its example. `target` is None in data for prediction only. `allowed`
    lists the allowed outputs, None allows every text. `references` lists all correct answers for
    scoring, and is empty if "no answer" is correct. None means the target alone. `traits` are
    further properties that scoring needs, named by the task.
    """

    id: str
    prompt: str
    target: str | None = None
    allowed: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = None
    traits: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One document and its subtasks. `id` is unique within its split."""

    id: str
    document: str
    subtasks: tuple[Subtask, ...]

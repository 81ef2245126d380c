"""What every benchmark offers: examples to read, and a score for predictions."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError

T = TypeVar("T")

_SCORING = "decides how predictions are scored"

SPLITS = ("train", "validation", "test")

# predictions[example id][subtask id] = text
Predictions = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Report:
    """A score, and what it was computed under.

    `policy` names every convention that changes the figures (data version, normalisation, ...):
    a printed score without it cannot be compared. `tables` split the score up, each by one view:
    {"accuracy per slot": {"hotel-area": 0.9, ...}}.
    """

    metrics: dict[str, float]
    policy: dict[str, str] = field(default_factory=dict)
    tables: dict[str, dict[str, float]] = field(default_factory=dict)


class Task(Protocol):
    """How a data set becomes examples, and how predictions are scored."""

    @property
    def name(self) -> str: ...

    @property
    def negative_target(self) -> str | None:
        """The target that says "nothing here" ("none" for dialogue states), if there is one."""

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """Reads one of the splits "train", "validation", "test", in the order of the source.

        Raises MissingData, when it is called or for the first example, if the source has no such
        split.
        """

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """Scores `predictions[example id][subtask id]`. A missing prediction is a UserError."""


def scoring_option(default: T) -> T:
    """A field of a task that decides how it is scored; its examples are the same whatever it is."""
    value: T = dataclasses.field(default=default, metadata={_SCORING: True})
    return value


def reading_options(task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a task's examples depend on, defaults included.

    Of a task that is no dataclass, those `given` to make it.
    """
    made: Any = task  # mypy knows of no Task that is a dataclass
    if not dataclasses.is_dataclass(made):
        return dict(given)
    return {
        option.name: getattr(task, option.name)
        for option in dataclasses.fields(made)
        if _SCORING not in option.metadata
    }


def reader_version(task: Task) -> int:
    """Which version of the task's reader this is: its attribute `reader_version`, or 1."""
    return int(getattr(task, "reader_version", 1))


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")


def prediction_for(predictions: Predictions, example_id: str, subtask_id: str) -> str:
    """The predicted text, or a UserError: a missing one must not shrink the denominator."""
    if example_id not in predictions:
        raise UserError(f"no prediction for example {example_id!r}: every example must have one")
    subtasks = predictions[example_id]
    if subtask_id not in subtasks:
        raise UserError(
            f"no prediction for subtask {subtask_id!r} of example {example_id!r}: "
            "every subtask must have one"
        )
    return subtasks[subtask_id]


def target_of(example: Example, subtask: Subtask) -> str:
    """The target, or a UserError: there is nothing to score against."""
    if subtask.target is None:
        raise UserError(
            f"subtask {subtask.id!r} of example {example.id!r} has no target to score against"
        )
    return subtask.target

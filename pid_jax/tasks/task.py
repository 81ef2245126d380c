"""The interface of tasks: reading examples and scoring predictions."""

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
    """Scores and the conventions behind them.

    `policy` names every convention that affects the scores (data version, normalisation, ...).
    Scores are comparable only under the same policy. `tables` break the scores down, for example
    {"accuracy per slot": {"hotel-area": 0.9, ...}}. The highest value of a metric is best, except
    for those in `lower_is_better`.
    """

    metrics: dict[str, float]
    policy: dict[str, str] = field(default_factory=dict)
    tables: dict[str, dict[str, float]] = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()


class Task(Protocol):
    """Reads a data set as examples, and scores predictions for them."""

    @property
    def name(self) -> str: ...

    @property
    def negative_target(self) -> str | None:
        """The target that means "nothing here" ("none" for dialogue states), or None."""

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """Reads one of the splits "train", "validation", "test", in the order of the source.

        Raises MissingData if the source has no such split, at the call or at the first example.
        """

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """Scores predictions[example id][subtask id]. Raises UserError for a missing one."""


def scoring_option(default: T) -> T:
    """A dataclass field of a task that affects scoring only, not the examples."""
    value: T = dataclasses.field(default=default, metadata={_SCORING: True})
    return value


def reading_options(task: Task, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that affect a task's examples, including defaults.

    options: the options that created the task, returned for tasks that are no dataclass.
    """
    instance: Any = task  # mypy knows no Task that is a dataclass
    if not dataclasses.is_dataclass(instance):
        return dict(options)
    return {
        option.name: getattr(task, option.name)
        for option in dataclasses.fields(instance)
        if _SCORING not in option.metadata
    }


def reader_version(task: Task) -> int:
    """The version of the task's reader: its attribute `reader_version`, or 1."""
    return int(getattr(task, "reader_version", 1))


def check_split(split: str) -> None:
    """Raises UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")


def prediction_for(predictions: Predictions, example_id: str, subtask_id: str) -> str:
    """The predicted text. Raises UserError if it is missing, because every subtask counts."""
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
    """The target. Raises UserError for a subtask without one."""
    if subtask.target is None:
        raise UserError(
            f"subtask {subtask.id!r} of example {example.id!r} has no target to score against"
        )
    return subtask.target

"""Registry of tasks by name: `get("synthetic_dst").examples(None, "train")`."""

import inspect
from collections.abc import Callable
from typing import Any

from pid_jax.errors import UserError
from pid_jax.tasks.aci_bench import AciBench
from pid_jax.tasks.imported import imported
from pid_jax.tasks.jsonl import JsonLines
from pid_jax.tasks.multiwoz import MultiWoz20, MultiWoz21, MultiWoz23, MultiWoz24
from pid_jax.tasks.schema_guided import MultiWoz22, SchemaGuidedDialogue
from pid_jax.tasks.squad import RadQa, Squad1, Squad2
from pid_jax.tasks.synthetic_dst import SyntheticDialogueState
from pid_jax.tasks.task import (
    SPLITS,
    Predictions,
    Report,
    Task,
    prediction_for,
    reader_version,
    reading_options,
    target_of,
)

__all__ = [
    "SPLITS",
    "Predictions",
    "Report",
    "Task",
    "get",
    "names",
    "prediction_for",
    "reader_version",
    "reading_options",
    "target_of",
]

_TASKS: dict[str, Callable[..., Task]] = {
    "aci_bench": AciBench,
    "jsonl": JsonLines,
    "multiwoz20": MultiWoz20,
    "multiwoz21": MultiWoz21,
    "multiwoz22": MultiWoz22,
    "multiwoz23": MultiWoz23,
    "multiwoz24": MultiWoz24,
    "radqa": RadQa,
    "sgd": SchemaGuidedDialogue,
    "squad1": Squad1,
    "squad2": Squad2,
    "synthetic_dst": SyntheticDialogueState,
}

_PARTS = ("name", "negative_target", "examples", "score")


def names() -> tuple[str, ...]:
    """The names of the built-in tasks, sorted."""
    return tuple(sorted(_TASKS))


def get(name: str, **options: Any) -> Task:
    """Creates the task called `name`, or a task of your own for "module:Class".

    `options` are those of the task (for MultiWOZ `prompts` and `any_of`). Raises UserError for an
    unknown name or option and for an invalid value.
    """
    if ":" in name:
        make = imported(name, "task")
    elif name in _TASKS:
        make = _TASKS[name]
    else:
        raise UserError(
            f"unknown task {name!r}: choose from {', '.join(names())}, or name a class of your "
            "own, module:Class"
        )
    signature = inspect.signature(make)
    known = sorted(signature.parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"task {name} has no option {', '.join(unknown)}: it has {', '.join(known) or 'none'}"
        )
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(f"task {name}: {error}: give it as an option") from error
    task = make(**options)
    lacking = [part for part in _PARTS if not hasattr(task, part)]
    if lacking:
        raise UserError(
            f"{name} is not a task: it has no {', '.join(lacking)} (see pid_jax.tasks.Task)"
        )
    return task

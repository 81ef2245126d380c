"""The benchmarks, by name: `get("synthetic_dst").examples(None, "train")`."""

import inspect
from collections.abc import Callable
from typing import Any

from pid_jax.errors import UserError
from pid_jax.tasks.aci_bench import AciBench
from pid_jax.tasks.jsonl import JsonLines
from pid_jax.tasks.multiwoz import MultiWoz20, MultiWoz21, MultiWoz23, MultiWoz24
from pid_jax.tasks.schema_guided import MultiWoz22, SchemaGuidedDialogue
from pid_jax.tasks.squad import RadQa, Squad1, Squad2
from pid_jax.tasks.synthetic_dst import SyntheticDialogueState
from pid_jax.tasks.task import SPLITS, Predictions, Report, Task

__all__ = ["SPLITS", "Predictions", "Report", "Task", "get", "names"]

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


def names() -> tuple[str, ...]:
    """The names that `get` knows."""
    return tuple(sorted(_TASKS))


def get(name: str, **options: Any) -> Task:
    """Makes the task called `name`.

    `options` are the task's own (for MultiWOZ `prompts` and `any_of`). Raises
    UserError for a name, an option or an option's value that is not known.
    """
    if name not in _TASKS:
        raise UserError(f"unknown task {name!r}: choose from {', '.join(names())}")
    known = sorted(inspect.signature(_TASKS[name]).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"task {name} has no option {', '.join(unknown)}: it has {', '.join(known) or 'none'}"
        )
    return _TASKS[name](**options)

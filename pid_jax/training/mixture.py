"""Mixtures of tasks: `config.data.mixture`, from a name to a weight and the data of a task.

    config.data.mixture = ConfigDict({
        "dialogues": {"task": "multiwoz21", "path": "MULTIWOZ2.1.zip", "weight": 2.0},
        "questions": {"task": "squad2", "path": "squad", "weight": 1.0, "document_tokens": 512},
    })

Every part of a mixture is read, cut and drawn as a run of its own. All have one tokenizer. A run of
one task is a mixture of one.
"""

import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from pid_jax.errors import UserError

WEIGHT = "weight"
_OWN: dict[str, Any] = {"task": "", "path": "", "options": {}}
"""Keys of config.data that a part does not inherit. Without a task, its name is that of one."""
_INHERITED = (
    "train_split",
    "validation_split",
    "max_prompts",
    "negative_rate",
    "document_tokens",
    "prompt_tokens",
    "target_tokens",
    "truncation_side",
    "document_multiple",
)
"""Keys that a part has from config.data unless it has its own."""


class Part(NamedTuple):
    """A task of a run."""

    name: str
    weight: float
    config: ConfigDict
    """The configuration of a run of this task alone."""


def parts(config: ConfigDict) -> list[Part]:
    """The parts of the mixture by name, or the one task of a run without a mixture."""
    entries = config.data.mixture
    if not entries:
        return [Part(str(config.data.task), 1.0, config)]
    return [_part(config, name) for name in sorted(entries)]


def part(config: ConfigDict, name: str | None) -> Part:
    """The part of this name, or the only one. Raises UserError, listing the names, for others."""
    by_name = {one.name: one for one in parts(config)}
    if name is None and len(by_name) == 1:
        return next(iter(by_name.values()))
    if name not in by_name:
        problem = "has several tasks" if name is None else f"has no {name!r}"
        raise UserError(f"config.data.mixture {problem}: choose from {', '.join(sorted(by_name))}")
    return by_name[name]


def check(config: ConfigDict) -> None:
    """Raises UserError, naming the key, for an entry that cannot be read. Checks no ranges."""
    for name in config.data.mixture:
        key = f"config.data.mixture.{name}"
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"{key}: a name has letters, digits, - and _ only")
        entry = _entry(config, name)
        if not isinstance(entry, ConfigDict):
            raise UserError(
                f"{key} is {entry!r}: it must be a weight, or a section with a weight, such as "
                f'{{"{WEIGHT}": 1.0, "task": "squad2", "path": "squad"}}'
            )
        known = (WEIGHT, *_OWN, *_INHERITED)
        for unknown in sorted(set(entry) - set(known)):
            raise UserError(f"unknown key {key}.{unknown}: it has {', '.join(known)}")
        if WEIGHT not in entry:
            raise UserError(f"{key} has no {WEIGHT}: set {key}.{WEIGHT}, a number above 0")
        for own, value in entry.items():
            _check_type(f"{key}.{own}", value, 1.0 if own == WEIGHT else config.data[own])
        if not 0 < entry[WEIGHT] < float("inf"):
            raise UserError(f"{key}.{WEIGHT} is {entry[WEIGHT]}: it must be a number above 0")


def own_keys(config: ConfigDict) -> dict[str, list[str]]:
    """The dotted keys with which parts replace a key of config.data, by that key."""
    return {
        key: [
            f"data.mixture.{name}.{key}"
            for name, entry in config.data.mixture.items()
            if isinstance(entry, ConfigDict) and key in entry
        ]
        for key in _INHERITED
    }


def _part(config: ConfigDict, name: str) -> Part:
    entry = _entry(config, name)
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.data.mixture = ConfigDict()
        for key, default in _OWN.items():
            alone.data[key] = ConfigDict(default) if default == {} else default
        alone.data.update({key: entry[key] for key in entry if key != WEIGHT})
        alone.data.task = alone.data.task or name
    return Part(name, float(entry[WEIGHT]), alone)


def _entry(config: ConfigDict, name: str) -> Any:
    """A weight alone stands for the task of that name."""
    entry = config.data.mixture[name]
    is_number = isinstance(entry, int | float) and not isinstance(entry, bool)
    return ConfigDict({WEIGHT: entry}) if is_number else entry


def _check_type(key: str, value: Any, example: Any) -> None:
    kinds = {
        float: (int | float, "a number"),
        int: (int, "an integer"),
        str: (str, "text"),
        ConfigDict: (ConfigDict, "a section"),
    }
    kind, name = kinds[type(example)]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{key} is {value!r}: it must be {name}")

"""The configuration of a run: how it is read, checked, compared and written."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pid_jax.checkpoints import manifest
from pid_jax.errors import UserError
from pid_jax.models import rematerialisation
from pid_jax.training import config_files, loggers, mixture, optimizer, profiling
from pid_jax.training.config_files import read_argument
from pid_jax.training.defaults import default
from pid_jax.training.patience import TASK

__all__ = [
    "check",
    "default",
    "differences",
    "get",
    "leaves",
    "load",
    "of_run",
    "read_argument",
    "read_saved",
    "to_json",
    "under",
    "with_optimizer_from_python",
    "with_overrides",
]

OPTIMIZER_FROM_PYTHON = "train(optimizer=...)"
"""The value of `optimizer.name` in the config.json of a run whose optimizer came from Python."""

# Sections whose keys the model family, the task and the optimizer define and check.
OPEN_SECTIONS = (
    "model.architecture",
    "model.init_architecture",
    "data.options",
    "data.mixture",
    "optimizer.args",
)

# A run cannot go on from its checkpoint under another value of these.
FIXED_BY_CHECKPOINT = (
    "method",
    "seed",
    "model.architecture",
    "model.init",
    "model.partial_init",
    "model.init_architecture",
    "model.frozen_dtype",
    "adapter",
    "tokenizer",
    "data",
    "optimizer.name",
    "train.freeze",
    "train.ema_decay",
)
# Of these, another value changes no loss: only how batches are computed, and what dropout draws.
CHANGEABLE = ("data.packing",)
# These name where things are or what is reported: another value changes no training step.
WITHOUT_EFFECT_ON_TRAINING = (
    "data.path",
    "data.validation_split",
    "data.mixture.*.path",
    "data.mixture.*.validation_split",
    "data.tokens",
    "data.cache",
    "train.log_every_steps",
    "train.remat",
    "train.check_memory",
    "train.loggers",
    "train.profile_steps",
    "evaluation",
    "checkpoint",
)


_COUNTS_OF_DATA = (
    "max_prompts",
    "document_tokens",
    "prompt_tokens",
    "target_tokens",
    "document_multiple",
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs a config file's `get_config()` and applies `--config.a.b=value` overrides.

    `path` is a Python file or the name of one of this project's config files, optionally with an
    argument for `get_config`: "file.py:argument", "multiwoz:21,t5_base". Raises UserError for a
    file that cannot be run, an unknown key or a value of another type.
    """
    config, file = config_files.run(path)
    _check_keys(config, str(file))
    return with_overrides(config, overrides, path)


def of_run(workdir: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """The configuration of a training run, for other work than to go on with it.

    Keys that the run's version did not have yet get their defaults, and so does an optimizer that
    came from Python.
    """
    file = Path(workdir) / "config.json"
    config = default().unlock()
    for section in OPEN_SECTIONS:
        get(config, section.rpartition(".")[0])[section.rpartition(".")[2]] = ConfigDict()
    manifest.check_file(file.parent, file.name)
    try:
        saved = read_saved(file)
        if saved["optimizer"].get("name") == OPTIMIZER_FROM_PYTHON:
            del saved["optimizer"]
        config.update(saved)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: {error}: name a config file with --config") from error
    return with_overrides(config, overrides, file)


def with_overrides(config: ConfigDict, overrides: Sequence[str], name: str | Path) -> ConfigDict:
    """Applies `--config.a.b=value` overrides to a configuration, which `name` names in errors."""
    known = dict(leaves(config))
    for override in overrides:
        _check_override(override, known, name)

    values = flags.FlagValues()
    argv = ["config", *overrides]
    # accept_new_attributes: for OPEN_SECTIONS only, since everything else was checked above.
    config_flags.DEFINE_config_dict(
        "config",
        config.unlock(),
        lock_config=False,
        flag_values=values,
        sys_argv=argv,
        accept_new_attributes=True,
    )
    try:
        rest = values(argv)
    except flags.Error as error:
        raise UserError(f"{error} (in {name} the key has another type)") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: overrides look like --config.key=value")
    config.lock()
    check(config)
    return config


def check(config: ConfigDict) -> None:
    """Raises UserError, naming the key, for a value outside its range."""
    _one_of(config, "method", ("pid", "pie"))
    _one_of(config, "model.dtype", ("auto", "float32", "bfloat16"))
    _one_of(config, "model.frozen_dtype", ("float32", "bfloat16"))
    if config.model.partial_init and not config.model.init:
        raise UserError("config.model.partial_init needs a checkpoint in config.model.init")
    if config.model.init_architecture and not config.model.partial_init:
        raise UserError("config.model.init_architecture needs config.model.partial_init=True")
    if config.adapter.rank and config.model.partial_init:
        raise UserError(
            "config.adapter.rank needs config.model.partial_init=False: new parameters would be "
            "frozen before they are trained"
        )
    for key in ("adapter.targets", "train.freeze"):
        _regular_expression(config, key)
    _one_of(config, "train.remat", rematerialisation.NAMES)
    optimizer.check(config)
    _one_of(config, "optimizer.schedule", ("constant", "linear", "cosine", "rsqrt"))
    mixture.check(config)
    own = mixture.own_keys(config)
    _one_of(config, "data.tokens", ("auto", "memory", "disk"))
    for key in ("data.truncation_side", *own["truncation_side"]):
        _one_of(config, key, ("left", "right"))
    _check_best_metric(config)
    loggers.check(config.train.loggers)
    profiling.steps(config.train.profile_steps)
    for key in (
        "data.batch_size",
        *(key for name in _COUNTS_OF_DATA for key in (f"data.{name}", *own[name])),
        "train.steps",
        "train.micro_batches",
        "train.log_every_steps",
        "evaluation.every_steps",
        "checkpoint.every_steps",
        "checkpoint.keep_last",
    ):
        _at_least(config, key, 1)
    for key in (
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "train.z_loss",
        "train.max_nonfinite_steps",
        "checkpoint.patience",
        "evaluation.task_score_every_steps",
        "adapter.rank",
        "adapter.alpha",
        "evaluation.documents",
        "evaluation.batch_size",
    ):
        _at_least(config, key, 0)
    for key in ("data.negative_rate", *own["negative_rate"], "optimizer.final_fraction"):
        if not 0 <= get(config, key) <= 1:
            raise UserError(f"config.{key} is {get(config, key)}: it must be from 0 to 1")
    for key in (
        "train.dropout_rate",
        "train.label_smoothing",
        "train.ema_decay",
        "adapter.dropout",
    ):
        if not 0 <= get(config, key) < 1:
            raise UserError(f"config.{key} is {get(config, key)}: it must be from 0 to below 1")


def with_optimizer_from_python(config: ConfigDict) -> ConfigDict:
    """A copy that says so: a run does not go on with a configured optimizer, or the reverse."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.optimizer.name = OPTIMIZER_FROM_PYTHON
        changed.optimizer.args = ConfigDict()
    return changed


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key in dotted form with its value; an empty section is a leaf of its own."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value) > 0:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            empty_section = isinstance(value, Mapping | ConfigDict)
            yield f"{prefix}{key}", {} if empty_section else value


def get(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys on which two configurations disagree, with both values (None: absent)."""
    before, after = (
        # JSON has no tuples.
        {key: list(v) if isinstance(v, tuple) else v for key, v in leaves(of)}
        for of in (old, new)
    )
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def under(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of `sections` or lies within one. "*" stands for any name."""
    return any(
        fnmatchcase(key, section) or fnmatchcase(key, f"{section}.*") for section in sections
    )


def to_json(config: ConfigDict) -> str:
    """The configuration as it is written to a workdir's config.json."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def read_saved(file: Path) -> dict[str, Any]:
    """The configuration in a workdir's config.json, with keys that its version did not have yet."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: {error}: name a config file with --config") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object: name a config file with --config")
    later: dict[str, dict[str, Any]] = {
        "optimizer": {"args": {}},
        "model": {
            "scan_layers": False,
            "partial_init": False,
            "init_architecture": {},
            "frozen_dtype": "float32",
        },
        "adapter": default().adapter.to_dict(),
        "data": {"mixture": {}, "tokens": "memory", "cache": "", "packing": False},
        "train": {
            "remat": rematerialisation.NONE,
            "micro_batches": 1,
            "freeze": "",
            "ema_decay": 0.0,
            "max_nonfinite_steps": 0,
            "loggers": ["tensorboard"],
            "profile_steps": "",
        },
        "evaluation": {"task_score_every_steps": 0},
        "checkpoint": {"patience": 0},
    }
    for name, added in later.items():
        section = content.setdefault(name, {})
        if isinstance(section, dict):
            content[name] = {**added, **section}
    return content


def _check_keys(config: ConfigDict, file: str) -> None:
    expected = {key for key, _ in leaves(default()) if not under(key, OPEN_SECTIONS)}
    present = {key for key, _ in leaves(config) if not under(key, OPEN_SECTIONS)}
    missing = sorted(expected - present)
    unknown = sorted(present - expected)
    if missing or unknown:
        parts = [f"no key {key}" for key in missing] + [f"unknown key {key}" for key in unknown]
        raise UserError(
            f"config file {file}: {', '.join(parts)}. Start from pid_jax.training.config.default()"
        )


def _check_override(override: str, known: Mapping[str, Any], path: str | Path) -> None:
    if not override.startswith("--config."):
        raise UserError(f"unexpected argument {override!r}: overrides look like --config.key=value")
    key, equals, _ = override.removeprefix("--config.").partition("=")
    if not equals:
        raise UserError(f"{override}: write --config.{key}=value")
    if key in known or (under(key, OPEN_SECTIONS) and key not in OPEN_SECTIONS):
        return
    sections = sorted(name for name in known if name.startswith(f"{key}."))
    if sections:
        raise UserError(
            f"config.{key} is a section; set its keys one by one: "
            + ", ".join(f"--config.{name}" for name in sections)
        )
    raise UserError(f"unknown key config.{key} for {path}{_hint(key, known)}")


def _hint(key: str, known: Mapping[str, Any]) -> str:
    """What an unknown key may have been meant to be, or what its section holds."""
    section, _, name = key.rpartition(".")
    beside = [other for other in known if other.rpartition(".")[0] == section]
    close = [other for other in known if other.rpartition(".")[2] == name]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.85)
    if close:
        return f"; did you mean config.{close[0]}?"
    if section and beside:
        names = ", ".join(other.rpartition(".")[2] for other in beside)
        return f": config.{section} has {names}"
    return ""


def _check_best_metric(config: ConfigDict) -> None:
    metric = config.checkpoint.best_metric
    if metric.startswith(f"{TASK}/"):
        if not config.evaluation.task_score_every_steps:
            raise UserError(
                f"config.checkpoint.best_metric={metric} needs "
                "config.evaluation.task_score_every_steps"
            )
    elif metric not in _VALIDATION_METRICS:
        raise UserError(
            f"config.checkpoint.best_metric is {metric!r}: choose from "
            f"{', '.join(_VALIDATION_METRICS)}, or {TASK}/NAME for a score of the task"
        )


_VALIDATION_METRICS = ("loss", "token_accuracy", "exact_match", "joint_exact_match")


def _one_of(config: ConfigDict, key: str, choices: Sequence[str]) -> None:
    if get(config, key) not in choices:
        raise UserError(f"config.{key} is {get(config, key)!r}: choose from {', '.join(choices)}")


def _regular_expression(config: ConfigDict, key: str) -> None:
    try:
        re.compile(get(config, key))
    except re.error as error:
        raise UserError(
            f"config.{key} is {get(config, key)!r}: not a regular expression ({error})"
        ) from error


def _at_least(config: ConfigDict, key: str, least: int) -> None:
    if get(config, key) < least:
        raise UserError(f"config.{key} is {get(config, key)}: it must be at least {least}")

"""Where a run's metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, your own class.

`config.train.loggers` names them. Only the first process of a run opens any.
"""

import functools
import importlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from pid_jax.atomic_file import replacing
from pid_jax.errors import UserError
from pid_jax.tasks.imported import imported

SECONDS_BETWEEN_FLUSHES = 10.0
_KEY = "config.train.loggers"

log = logging.getLogger(__name__)


class Logger(Protocol):
    """Receives the metrics of a run. An exception ends the run.

    "module:Class" is called with the arguments of `Opened`.
    """

    def write(self, step: int, prefix: str, metrics: Mapping[str, float]) -> None:
        """Metrics after a step. All are finite.

        prefix: "train", "validation", "task" (the task's own score), or "" for speed, memory and
        padding. A resumed run writes the steps after its checkpoint again.
        """

    def close(self) -> None:
        """Called once, at the end of the run or of the process, also after an error."""


Opened = Callable[[Path, Mapping[str, Any], int], Logger]
"""Opens a logger for a working directory, the run's configuration (a dict of dicts), and the step
after which the run continues."""


def tagged(prefix: str, name: str) -> str:
    """The name of a metric among all: "train/loss", or "mfu" without a prefix."""
    return f"{prefix}/{name}" if prefix else name


class TensorBoard:
    """Writes events in the calling thread.

    SummaryWriter of tensorboardX uses a background thread, and blocks forever after a full disk has
    stopped that thread.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any], resume_after: int) -> None:
        # Imports torch where it can, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        self._events = EventsWriter(str(workdir / "events"))
        self._flushed = float("-inf")
        # TensorBoard hides events of earlier files from this step on.
        self._add(resume_after + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, prefix: str, metrics: Mapping[str, float]) -> None:
        """Adds scalars, such as "train/loss"."""
        for name, value in metrics.items():
            self._add(step, summary=self._scalar(tagged(prefix, name), value))
        if time.monotonic() - self._flushed >= SECONDS_BETWEEN_FLUSHES:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(self._event(wall_time=time.time(), step=step, **content))


class WeightsAndBiases:
    """A run of Weights & Biases, which a resumed run continues.

    `<workdir>/wandb_run_id` has its id. The service ignores steps that it has already, which a
    resumed run repeats with the same numbers. Project, entity and mode are those of wandb's
    variables (WANDB_PROJECT and so on).
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any], resume_after: int) -> None:
        file = workdir / "wandb_run_id"
        if not file.exists():
            with replacing(file) as new:
                new.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = _wandb().init(
            project=os.environ.get("WANDB_PROJECT", "pid_jax"),
            id=file.read_text(encoding="utf-8"),
            name=os.environ.get("WANDB_NAME", workdir.absolute().name),
            dir=str(workdir),
            config=dict(config),
            resume="allow",
        )

    def write(self, step: int, prefix: str, metrics: Mapping[str, float]) -> None:
        """Logs metrics, such as "train/loss"."""
        self._run.log({tagged(prefix, name): x for name, x in metrics.items()}, step=step)

    def close(self) -> None:
        """Ends the run, after all is sent."""
        self._run.finish()


_BUILT_IN: dict[str, Opened] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check(names: Sequence[str]) -> None:
    """Raises UserError for a name that is no logger, without opening any."""
    for name in names:
        if not isinstance(name, str) or not (name in _BUILT_IN or ":" in name):
            raise UserError(
                f"{_KEY} has {name!r}: choose from {', '.join(_BUILT_IN)}, or name a class of your "
                "own, module:Class"
            )


def check_importable(names: Sequence[str]) -> None:
    """Raises UserError for a logger whose module is missing, before training."""
    for name in names:
        if name == "wandb":
            _wandb()
        elif name not in _BUILT_IN:
            imported(name, "logger")


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f'{_KEY} has "wandb", which cannot be imported ({error}): pip install wandb, or '
            "remove it"
        ) from error


def _close(name: str, logger: Logger, kind: type[BaseException] | None, *_: object) -> None:
    """Closes a logger. After an error of the run, that of the logger is a warning."""
    try:
        logger.close()
    except Exception as error:
        if kind is None:
            raise
        log.warning("the logger %s could not be closed: %s", name, error)


@contextmanager
def opened(workdir: Path, config: ConfigDict, *, resume_after: int) -> Iterator[list[Logger]]:
    """The loggers of a run. Closes those that are open, whatever happens."""
    settings = config.to_dict()
    with ExitStack() as stack:
        loggers = []
        for name in config.train.loggers:
            make = _BUILT_IN.get(name) or imported(name, "logger")
            logger = make(workdir, settings, resume_after)
            stack.push(functools.partial(_close, name, logger))
            loggers.append(logger)
        yield loggers

"""Metrics of a run on disk, metrics.jsonl, and in its loggers."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ml_collections import ConfigDict

from pid_jax.atomic_file import replacing
from pid_jax.distributed import service
from pid_jax.errors import UserError
from pid_jax.training import loggers
from pid_jax.training.loggers import Logger

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Writes `{"step", "split", name: value, ...}` lines, and the same metrics to loggers.

    The file has one line per training step and per evaluation, and no times, so that it is
    reproducible. A resumed run writes the same lines as an uninterrupted one. A value that is not
    finite is null in the file, and left out for the loggers.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        resume_after: int = 0,
        evaluated: bool = True,
        loggers: Sequence[Logger] = (),
    ) -> None:
        """Deletes the lines after step `resume_after`, which the run will write again.

        evaluated: whether the run was evaluated after that step. Otherwise the lines of evaluations
        after that step are deleted, too.
        """
        path = Path(workdir) / METRICS
        truncate_after(path, resume_after, evaluated=evaluated)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        self._loggers = loggers

    def write(
        self,
        step: int,
        split: str,
        metrics: Mapping[str, float],
        *,
        events: bool = True,
        lower_is_better: Sequence[str] = (),
        task: str | None = None,
    ) -> None:
        """Writes and flushes one line. events: also write to the loggers.

        lower_is_better: metrics whose lowest value is best, by their names here. task: of a step of
        a mixture.
        """
        line: dict[str, Any] = {"step": step, "split": split}
        if task is not None:
            line["task"] = task
        line |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        if lower_is_better:
            line["lower_is_better"] = sorted(lower_is_better)
        self._lines.write(json.dumps(line) + "\n")
        if events:
            self.write_events(step, metrics, split if task is None else f"{split}/{task}")

    def write_events(self, step: int, scalars: Mapping[str, float], prefix: str = "") -> None:
        """Writes to the loggers only, such as speed."""
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        for logger in self._loggers:
            logger.write(step, prefix, finite)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()


class NoMetrics:
    """A `MetricsWriter` that writes nothing, for all processes but the first."""

    def write(
        self,
        step: int,
        split: str,
        metrics: Mapping[str, float],
        *,
        events: bool = True,
        lower_is_better: Sequence[str] = (),
        task: str | None = None,
    ) -> None:
        """Ignores the metrics."""

    def write_events(self, step: int, scalars: Mapping[str, float], prefix: str = "") -> None:
        """Ignores the scalars."""


@contextmanager
def writer_of_process(
    workdir: Path, config: ConfigDict, *, resume_after: int, evaluated: bool
) -> Iterator[MetricsWriter | NoMetrics]:
    """The writer of a run. The arguments are those of `MetricsWriter`.

    Only the first process writes metrics and opens loggers."""
    if not service.is_first():
        yield NoMetrics()
        return
    with (
        loggers.opened(workdir, config, resume_after=resume_after) as of_run,
        MetricsWriter(
            workdir, resume_after=resume_after, evaluated=evaluated, loggers=of_run
        ) as writer,
    ):
        yield writer


def lines_until(workdir: Path, step: int, *, evaluated: bool = True) -> list[dict[str, Any]]:
    """The complete lines of a run up to a step.

    evaluated: with the lines of evaluations after that step.
    """
    lines = map(json.loads, _lines_until(workdir / METRICS, step))
    return [line for line in lines if evaluated or not _is_evaluation(line, step)]


def truncate_after(path: Path, step: int, *, evaluated: bool = True) -> None:
    """Deletes the lines of later steps, and an incomplete last line of a killed process.

    evaluated: as for `lines_until`.
    """
    if path.exists():
        lines = [
            line
            for line in _lines_until(path, step)
            if evaluated or not _is_evaluation(json.loads(line), step)
        ]
        with replacing(path) as file:
            file.write_text("".join(lines), encoding="utf-8")


def _is_evaluation(line: Mapping[str, Any], step: int) -> bool:
    return line["step"] == step and line.get("split") != "train"


def _lines_until(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    # A line without its newline may end inside a number.
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    chosen = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                chosen.append(line.decode())
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: damaged ({error}): restore the file from a copy, or "
                "delete it to continue without the metrics so far"
            ) from error
    return chosen

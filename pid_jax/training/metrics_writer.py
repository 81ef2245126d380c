"""Metrics of a run on disk: metrics.jsonl and TensorBoard events."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pid_jax.atomic_file import replacing
from pid_jax.distributed import service

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_FLUSHES = 10.0


class NoMetrics:
    """A `MetricsWriter` that writes nothing, for all processes but the first."""

    def write(
        self,
        step: int,
        split: str,
        metrics: Mapping[str, float],
        *,
        events: bool = True,
        task: str | None = None,
    ) -> None:
        """Ignores the metrics."""

    def write_events(self, step: int, scalars: Mapping[str, float]) -> None:
        """Ignores the scalars."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class MetricsWriter:
    """Writes `{"step", "split", name: value, ...}` lines and TensorBoard scalars.

    The file has one line per training step and per evaluation, and no times, so that it is
    reproducible. A resumed run writes the same lines as an uninterrupted one.

    Events are written in the calling thread. SummaryWriter of tensorboardX uses a background
    thread, and blocks forever after a full disk has stopped that thread.
    """

    def __init__(self, workdir: str | Path, *, resume_after: int = 0) -> None:
        """Deletes the lines after step `resume_after`, which the run will write again."""
        path = Path(workdir) / METRICS
        truncate_after(path, resume_after)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        self._events = EventsWriter(str(Path(workdir) / "events"))
        self._flushed = float("-inf")
        # TensorBoard hides events of earlier files from this step on.
        self._add(resume_after + 1, session_log=SessionLog(status=SessionLog.START))

    def write(
        self,
        step: int,
        split: str,
        metrics: Mapping[str, float],
        *,
        events: bool = True,
        task: str | None = None,
    ) -> None:
        """Writes and flushes one line.

        events: also write TensorBoard scalars. task: of a step of a mixture.
        """
        about = {"step": step, "split": split} | ({} if task is None else {"task": task})
        self._lines.write(json.dumps({**about, **metrics}) + "\n")
        if events:
            group = split if task is None else f"{split}/{task}"
            self.write_events(step, {f"{group}/{name}": value for name, value in metrics.items()})

    def write_events(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars for TensorBoard only, such as speed."""
        for name, value in scalars.items():
            self._add(step, summary=scalar(name, value))
        if time.monotonic() - self._flushed >= SECONDS_BETWEEN_FLUSHES:
            self._events.flush()
            self._flushed = time.monotonic()

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._lines.close()
        finally:
            self._events.close()


def writer_of_process(workdir: str | Path, *, resume_after: int) -> MetricsWriter | NoMetrics:
    """The writer of a run. Only the first process writes metrics."""
    return MetricsWriter(workdir, resume_after=resume_after) if service.is_first() else NoMetrics()


def truncate_after(path: Path, step: int) -> None:
    """Deletes the lines of later steps, and an incomplete last line of a killed process."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        # A line without its newline may end inside a number.
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            lines.append(line)
    with replacing(path) as file:
        file.write_text("".join(lines), encoding="utf-8")

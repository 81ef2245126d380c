"""A run's figures on disk: metrics.jsonl for programs, TensorBoard events for people."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pid_jax.atomic_file import replacing

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_FLUSHES = 10.0


class MetricsWriter:
    """Writes `{"step", "split", name: value, ...}` lines and TensorBoard scalars.

    The file holds nothing that differs between two runs of the same command (no times), one
    line per training step and per evaluation, and never a step twice: the lines of a resumed
    run are those of a run that was never stopped.

    Events are written where they come from, not by the thread of tensorboardX's SummaryWriter:
    once that has died of a full disk, who adds to its queue waits forever.
    """

    def __init__(self, workdir: str | Path, *, resume_after: int = 0) -> None:
        """Drops what an earlier process wrote past step `resume_after`, to be written again."""
        path = Path(workdir) / METRICS
        keep_until(path, resume_after)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        self._events = EventsWriter(str(Path(workdir) / "events"))
        self._flushed = float("-inf")
        # TensorBoard hides what earlier files have from this step on.
        self._add(resume_after + 1, session_log=SessionLog(status=SessionLog.START))

    def write(
        self, step: int, split: str, metrics: Mapping[str, float], *, events: bool = True
    ) -> None:
        """One line, in the file when this returns; `events` also sends it to TensorBoard."""
        self._lines.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        if events:
            self.write_events(step, {f"{split}/{name}": value for name, value in metrics.items()})

    def write_events(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars for TensorBoard alone, such as speed."""
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


def keep_until(path: Path, step: int) -> None:
    """Removes the lines of later steps, and a last line that a killed process left half-written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        # A line without its newline may be cut anywhere, even within a number.
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    with replacing(path) as file:
        file.write_text("".join(kept), encoding="utf-8")

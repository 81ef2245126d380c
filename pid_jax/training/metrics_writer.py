"""A run's figures on disk: metrics.jsonl for programs, TensorBoard events for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tensorboardX import SummaryWriter

from pid_jax.atomic_file import replacing

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Writes `{"step", "split", name: value, ...}` lines and TensorBoard scalars.

    The file holds nothing that differs between two runs of the same command (no times), one
    line per training step and per evaluation, and never a step twice: the lines of a resumed
    run are those of a run that was never stopped.
    """

    def __init__(self, workdir: str | Path, *, resume_after: int = 0) -> None:
        """Drops what an earlier process wrote past step `resume_after`, to be written again."""
        path = Path(workdir) / METRICS
        keep_until(path, resume_after)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        self._events = SummaryWriter(str(workdir), purge_step=resume_after + 1, flush_secs=10)

    def write(
        self, step: int, split: str, metrics: Mapping[str, float], *, events: bool = True
    ) -> None:
        """One line, in the file when this returns; `events` also sends it to TensorBoard."""
        self._lines.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        if events:
            for name, value in metrics.items():
                self._events.add_scalar(f"{split}/{name}", value, step)

    def write_events(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars for TensorBoard alone, such as speed."""
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
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

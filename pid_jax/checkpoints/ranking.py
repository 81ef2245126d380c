"""The checkpoints of a run by step and by metric."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pid_jax.checkpoints import manifest, verification
from pid_jax.checkpoints.contents import CHECKPOINTS, saved_steps


class Ranked(NamedTuple):
    """The best checkpoint of those whose metrics are intact."""

    best: int | None
    """Its step, the latest of equals. None before an evaluation."""
    damaged: Mapping[int, str]
    """The problems of checkpoints whose metrics are damaged, by step."""


def ranked(workdir: Path, metric: str) -> Ranked:
    """Ranks the checkpoints of a run.

    The lowest "loss" and the highest of any other metric is best.
    """
    values: list[tuple[float, int]] = []
    damaged: dict[int, str] = {}
    for step in saved_steps(workdir):
        try:
            metrics = _metrics(workdir / CHECKPOINTS / str(step))
        except manifest.Damaged as error:
            damaged[step] = str(error)
            continue
        if metric in metrics:
            values.append((-metrics[metric] if metric == "loss" else metrics[metric], step))
    return Ranked(max(values)[1] if values else None, damaged)


def _metrics(checkpoint: Path) -> Mapping[str, float]:
    """The metrics at this checkpoint. Empty without an evaluation or a checkpoint.

    Raises Damaged if they are.
    """
    file = checkpoint / "metrics" / "metrics"
    try:
        verification.check_file(checkpoint, file.relative_to(checkpoint).as_posix())
        metrics = json.loads(file.read_bytes())
        return {name: float(value) for name, value in metrics.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except manifest.Damaged:
        if not checkpoint.is_dir():  # deleted meanwhile
            return {}
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise manifest.Damaged(f"{file}: cannot be read ({error})") from error

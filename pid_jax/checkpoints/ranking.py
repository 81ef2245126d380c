"""The checkpoints of a run by step and by metric."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
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

    The lowest "loss" is best, and so is the lowest value of a metric whose checkpoint says so. The
    highest of any other metric is best.
    """
    values: list[tuple[float, int]] = []
    damaged: dict[int, str] = {}
    for step in saved_steps(workdir):
        try:
            metrics, lower_is_better = _metrics(workdir / CHECKPOINTS / str(step))
        except manifest.Damaged as error:
            damaged[step] = str(error)
            continue
        if metric in metrics:
            values.append((rank(metric, metrics[metric], lower_is_better), step))
    return Ranked(max(values)[1] if values else None, damaged)


def rank(metric: str, value: float, lower_is_better: Collection[str] = ()) -> float:
    """A number that is higher for a better value of a metric. NaN is the worst."""
    if math.isnan(value):
        return -math.inf
    return -value if metric == "loss" or metric in lower_is_better else value


def with_order(
    metrics: Mapping[str, float], lower_is_better: Sequence[str]
) -> dict[str, float | list[str]]:
    """Metrics as a checkpoint has them. lower_is_better: those whose lowest value is best."""
    return {**metrics, **({_LOWER: sorted(lower_is_better)} if lower_is_better else {})}


_LOWER = "lower_is_better"


def _metrics(checkpoint: Path) -> tuple[Mapping[str, float], Sequence[str]]:
    """The metrics at this checkpoint, and those whose lowest value is best.

    Empty without an evaluation or a checkpoint. Raises Damaged if the file is damaged.
    """
    file = checkpoint / "metrics" / "metrics"
    try:
        verification.check_file(checkpoint, file.relative_to(checkpoint).as_posix())
        metrics = json.loads(file.read_bytes())
        lower_is_better = [str(name) for name in metrics.pop(_LOWER, ())]
        return {name: float(value) for name, value in metrics.items()}, lower_is_better
    except (FileNotFoundError, NotADirectoryError):
        return {}, ()
    except manifest.Damaged:
        if not checkpoint.is_dir():  # deleted meanwhile
            return {}, ()
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise manifest.Damaged(f"{file}: cannot be read ({error})") from error

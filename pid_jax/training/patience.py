"""Early stopping: the end of a run whose best metric no longer improves."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pid_jax.checkpoints import ranking

TASK = "task"
"""The split of the task's own scores in metrics.jsonl, and the prefix of their names."""


class Patience:
    """Counts evaluations in a row without a better value than the best before.

    A resumed run reads the values from metrics.jsonl. An equal value is no
    better, and NaN is the worst.
    """

    def __init__(self, metric: str, most: int, lines: Sequence[Mapping[str, Any]] = ()) -> None:
        """metric: `config.checkpoint.best_metric`. most: 0 for a run without early stopping."""
        self._metric = metric
        self._most = most
        self._best: float | None = None
        self.without_improvement = 0
        of_task = metric.startswith(f"{TASK}/")
        split, name = (TASK, metric.removeprefix(f"{TASK}/")) if of_task else ("validation", metric)
        for line in lines:
            if line.get("split") == split and name in line:
                lower = {metric} if name in line.get("lower_is_better", ()) else ()
                value = line[name]  # null for one that is not finite
                self.add({metric: math.nan if value is None else value}, lower)

    def add(self, metrics: Mapping[str, float], lower_is_better: Collection[str] = ()) -> None:
        """Counts an evaluation that has the metric. Any other changes nothing."""
        if self._metric not in metrics:
            return
        value = ranking.rank(self._metric, metrics[self._metric], lower_is_better)
        if self._best is None or value > self._best:
            self._best, self.without_improvement = value, 0
        else:
            self.without_improvement += 1

    @property
    def exhausted(self) -> bool:
        """Whether the run must end."""
        return 0 < self._most <= self.without_improvement

    def __str__(self) -> str:
        return (
            f"no better {self._metric} in {self.without_improvement} evaluations "
            f"(config.checkpoint.patience={self._most})"
        )

"""The evaluations of a run: teacher-forced metrics, and the task's own score."""

import logging
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from pid_jax.models.protocol import Params
from pid_jax.training import messages
from pid_jax.training.metrics_writer import MetricsWriter, NoMetrics
from pid_jax.training.patience import TASK
from pid_jax.training.stop_signals import StopSignals
from pid_jax.training.task_score import TaskScore

log = logging.getLogger(__name__)


Validate = Callable[[Params, StopSignals | None], dict[str, float] | None]
"""The teacher-forced metrics, or None after a signal."""


class Scores(NamedTuple):
    """The metrics at a step, by the names that `config.checkpoint.best_metric` takes."""

    metrics: dict[str, float]
    lower_is_better: tuple[str, ...] = ()


class Evaluations:
    """Evaluates a run where its configuration says so. Writes and logs the metrics."""

    def __init__(
        self,
        config: ConfigDict,
        validate: Validate,
        task_score: TaskScore | None,
    ) -> None:
        """task_score: None for a run without."""
        self._every = config.evaluation.every_steps
        self._task_every = config.evaluation.task_score_every_steps
        self._last = config.train.steps
        self._validate = validate
        self._task_score = task_score

    def due(self, step: int) -> bool:
        """Whether there is an evaluation after a step."""
        return self._due(step, self._every) or self._task_due(step)

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._last

    def _task_due(self, step: int) -> bool:
        return self._task_score is not None and self._due(step, self._task_every)

    def at(
        self, step: int, params: Params, writer: MetricsWriter | NoMetrics, stop: StopSignals
    ) -> Scores:
        """The metrics of the evaluations that are due. Without those that a signal interrupted.

        A signal interrupts all evaluations but the last, which a resumed run would not repeat.
        """
        heeded = stop if step < self._last else None
        metrics: dict[str, float] = {}
        if self._due(step, self._every):
            validation = self._validate(params, heeded)
            if validation is None:
                return Scores(metrics)
            writer.write(step, "validation", validation)
            log.info("step %d  validation: %s", step, messages.listed(validation))
            metrics |= validation
        if self._task_score is None or not self._task_due(step):
            return Scores(metrics)
        scores = self._task_score(params, heeded)
        if scores is None:
            stop.agree()
            return Scores(metrics)
        writer.write(step, TASK, scores.metrics, lower_is_better=scores.lower_is_better)
        log.info("step %d  task: %s", step, messages.listed(scores.metrics))
        metrics |= {f"{TASK}/{name}": value for name, value in scores.metrics.items()}
        return Scores(metrics, tuple(f"{TASK}/{name}" for name in scores.lower_is_better))

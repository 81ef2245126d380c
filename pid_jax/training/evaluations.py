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


def due(config: ConfigDict, step: int) -> list[str]:
    """The evaluations after a step, by their splits in metrics.jsonl."""
    every = {
        "validation": config.evaluation.every_steps,
        TASK: config.evaluation.task_score_every_steps,
    }
    is_last = step == config.train.steps
    return [split for split, steps in every.items() if steps and (step % steps == 0 or is_last)]


class Evaluations:
    """Evaluates a run where its configuration says so. Writes and logs the metrics."""

    def __init__(
        self,
        config: ConfigDict,
        validate: Validate,
        task_score: TaskScore | None,
    ) -> None:
        """task_score: None for a run without."""
        self._config = config
        self._validate = validate
        self._task_score = task_score

    def due(self, step: int) -> bool:
        """Whether there is an evaluation after a step."""
        return bool(due(self._config, step))

    def at(
        self, step: int, params: Params, writer: MetricsWriter | NoMetrics, stop: StopSignals
    ) -> Scores:
        """The metrics of the evaluations that are due. Without those that a signal interrupted.

        A signal interrupts all evaluations but those after the last step: a resumed run repeats
        interrupted ones, but not a finished run.
        """
        at_signals = stop if step < self._config.train.steps else None
        wanted = due(self._config, step)
        metrics: dict[str, float] = {}
        if "validation" in wanted:
            validation = self._validate(params, at_signals)
            if validation is None:
                return Scores(metrics)
            writer.write(step, "validation", validation)
            log.info("step %d  validation: %s", step, messages.listed(validation))
            metrics |= validation
        if self._task_score is None or TASK not in wanted:
            return Scores(metrics)
        scores = self._task_score(params, at_signals)
        if scores is None:
            stop.agree()
            return Scores(metrics)
        writer.write(step, TASK, scores.metrics, lower_is_better=scores.lower_is_better)
        log.info("step %d  task: %s", step, messages.listed(scores.metrics))
        metrics |= {f"{TASK}/{name}": value for name, value in scores.metrics.items()}
        return Scores(metrics, tuple(f"{TASK}/{name}" for name in scores.lower_is_better))

"""The metrics of steps: fetched one step later, checked, written and logged."""

import logging
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pid_jax import chips, device_memory
from pid_jax.data.batching import Batch
from pid_jax.data.packing import PackedBatch
from pid_jax.distributed import service
from pid_jax.training import messages, mixed_batches
from pid_jax.training.metrics_writer import MetricsWriter, NoMetrics
from pid_jax.training.model_flops import ModelFlops, utilisation
from pid_jax.training.progress import Progress, TokenCounts
from pid_jax.training.skipped_steps import SkippedSteps

log = logging.getLogger(__name__)


class Diverged(Exception):
    """The loss or the parameters are no longer finite. The state was not saved."""


class _Pending(NamedTuple):
    """A step whose metrics are still on the device."""

    number: int
    counts: TokenCounts
    inputs: Batch | PackedBatch
    on_device: dict[str, jax.Array]


class StepReports:
    """Reports the steps of a run in their order."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        writer: MetricsWriter | NoMetrics,
        progress: Progress,
        skipped: SkippedSteps,
        mesh: Mesh,
        flops: ModelFlops | None,
    ) -> None:
        """flops: of the model, for MFU where the devices have a known peak rate. None for none."""
        self._config = config
        self._workdir = workdir
        self._writer = writer
        self._progress = progress
        self._skipped = skipped
        self._mesh = mesh
        self._flops = flops
        self._task_of = mixed_batches.task_of_steps(config)
        kind = mesh.devices.flat[0].device_kind
        self._counts_flops = service.is_first() and chips.peak_flops_per_second(kind) is not None
        self._pending: _Pending | None = None
        self.saved = 0
        """The step of the last checkpoint, for messages."""

    def add(
        self,
        number: int,
        counts: TokenCounts,
        inputs: Batch | PackedBatch,
        on_device: dict[str, jax.Array],
    ) -> None:
        """Reports the preceding step, while this one runs.

        Raises Diverged if a step was not finite, and no more of them may be skipped.
        """
        pending, self._pending = self._pending, _Pending(number, counts, inputs, on_device)
        if pending is not None:
            self._report(pending)

    def flush(self) -> bool:
        """Reports the last step, if it was not yet, and returns whether. Raises Diverged."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._report(pending)
        return pending is not None

    def _report(self, step: _Pending) -> None:
        with self._progress.waiting("device"):
            fetched = jax.device_get(step.on_device)
        metrics = {name: float(value) for name, value in fetched.items()}
        finite, skipped = bool(metrics.pop("finite")), bool(metrics.pop("skipped", 0.0))
        self._skipped.add(skipped=skipped)
        if not finite or self._skipped.too_many:
            raise Diverged(messages.divergence(step.number, metrics, self.saved, self._workdir))
        if skipped:
            log.warning("%s", messages.skipped(step.number, metrics))
        last = self._config.train.steps
        shown = step.number % self._config.train.log_every_steps == 0 or step.number == last
        self._writer.write(
            step.number,
            "train",
            metrics | self._skipped.metrics,
            events=shown,
            task=self._task_of(step.number),
        )
        self._progress.add(
            documents=self._config.data.batch_size,
            counts=step.counts,
            model_flops=self._model_flops(step.inputs, metrics["target_tokens"]),
        )
        if shown:
            rates = self._progress.rates(step.number, self._utilisation)
            log.info("%s", self._progress.line(step.number, metrics, rates))
            peak = device_memory.peak_in_use(self._mesh.local_devices)
            memory = {} if peak is None else {"peak_bytes_in_use": float(peak)}
            self._writer.write_events(step.number, rates | memory)

    def _model_flops(self, inputs: Batch | PackedBatch, target_tokens: float) -> float:
        if self._flops is None or not self._counts_flops:
            return 0.0
        with self._progress.paused():  # while a new shape is traced
            return self._flops.of_step(inputs, target_tokens)

    def _utilisation(self, flops: float, seconds: float) -> float | None:
        return utilisation(flops, seconds, self._mesh)

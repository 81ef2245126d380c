"""The task's own score during training: answers to validation documents, scored as by eval.py."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pid_jax import evaluation, models, sharding
from pid_jax.checkpoints import huggingface, trained_model
from pid_jax.checkpoints.orbax import MODEL
from pid_jax.data.examples import Example
from pid_jax.distributed import exchange, service
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Cancelled
from pid_jax.models import lora
from pid_jax.models.protocol import Config, EncoderDecoder, Params
from pid_jax.scoring import Answer, scored
from pid_jax.tasks import Report, Task
from pid_jax.training import assembly, mixture, splits
from pid_jax.training.patience import TASK
from pid_jax.training.stop_signals import StopSignals


class TaskScores(NamedTuple):
    """The scores of a run's task, by name."""

    metrics: dict[str, float]
    lower_is_better: tuple[str, ...]


class _Part(NamedTuple):
    """A task of a mixture, or the only one of a run."""

    name: str
    config: ConfigDict
    task: Task
    examples: Sequence[Example]


class TaskScore:
    """Scores the parameters of a run with its task, by generation.

    Under a mixture the scores have the names of the parts, as in "squad/f1". All calls share their
    compiled programs.
    """

    def __init__(
        self,
        config: ConfigDict,
        architecture: Config,
        workdir: Path,
        mesh: Mesh,
    ) -> None:
        """architecture: the model's configuration.

        Raises UserError if `config.checkpoint.best_metric` is no score of the task.
        """
        self._parts = [_part(name, of_part) for name, _, of_part in mixture.parts(config)]
        self._mesh = mesh
        self._adapter = trained_model.adapter_of(config.to_dict())
        self._dtype = assembly.activation_dtype(config)
        self._check_metric(config.checkpoint.best_metric)
        directory = workdir / MODEL
        model = models.build(architecture, self._dtype)
        tokenizer = huggingface.load_tokenizer(directory)
        self._model = PidModel(model, {}, tokenizer, huggingface.read_generation(directory))

    def __call__(self, params: Params, stop: StopSignals | None) -> TaskScores | None:
        """The scores, the same in all processes. None if a signal interrupted the generation.

        params: of the running state, which stay where they are. stop: None to ignore signals.
        All processes must call this at the same step.
        """
        if self._adapter is not None:
            params = lora.merged(params, self._adapter.scale, self._dtype)
        model = self._model.with_params(own_params(self._model.model, params, self._mesh))
        cancelled = None if stop is None else _seen_by_all(stop)
        try:
            return self._named([self._report(part, model, cancelled) for part in self._parts])
        except Cancelled:
            return None

    def _report(self, part: _Part, model: PidModel, cancelled: Callable[[], bool] | None) -> Report:
        config = part.config
        evaluated = evaluation.evaluate(
            model,
            part.task,
            part.examples,
            limits=assembly.limits(config),
            batch_size=config.evaluation.batch_size or config.data.batch_size,
            method=config.method,
            after_batch=lambda documents, seconds: None,  # no progress bar
            processes=service.count() > 1,
            cancelled=cancelled,
        )
        return evaluated.report

    def _named(self, reports: Sequence[Report]) -> TaskScores:
        """The scores of all parts, under a mixture with the names of the parts."""
        metrics: dict[str, float] = {}
        lower: set[str] = set()
        for part, report in zip(self._parts, reports, strict=True):
            prefix = f"{part.name}/" if len(self._parts) > 1 else ""
            metrics |= {f"{prefix}{name}": value for name, value in report.metrics.items()}
            lower |= {f"{prefix}{name}" for name in report.lower_is_better & report.metrics.keys()}
        return TaskScores(metrics, tuple(sorted(lower)))

    def _check_metric(self, metric: str) -> None:
        """Scores the right answers, to know the names of the task's scores."""
        if not metric.startswith(f"{TASK}/"):
            return
        known = self._named([_of_right_answers(part) for part in self._parts]).metrics
        if metric.removeprefix(f"{TASK}/") not in known:
            raise UserError(
                f"config.checkpoint.best_metric is {metric!r}: the scores of the run are "
                + ", ".join(f"{TASK}/{one}" for one in known)
            )


def _part(name: str, config: ConfigDict) -> _Part:
    examples = splits.spaced(
        lambda: assembly.examples_of(config, config.data.validation_split),
        config.evaluation.documents,
    )
    return _Part(name, config, assembly.task_of(config), list(examples))


def _of_right_answers(part: _Part) -> Report:
    right = [[Answer(one.target or "") for one in example.subtasks] for example in part.examples]
    return scored(part.task, part.examples, right).report


def _seen_by_all(stop: StopSignals) -> Callable[[], bool]:
    """Whether any process has received a signal. A process need not wait for the others."""
    notice = exchange.Notice()

    def seen() -> bool:
        if stop.received is not None:
            notice.give()
        return notice.given

    return seen


def own_params(model: EncoderDecoder, params: Params, mesh: Mesh) -> Params:
    """The parameters on devices of this process, in the dtype of the model, for generation.

    params: on the mesh, where they stay. Parameters that every device has are those of the first
    local device: `PidModel` copies what it decodes with to the other local devices. Otherwise they
    stay split over the devices of a single process. Each of several processes receives a copy that
    is split over its devices.
    """
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params)):
        first = jax.local_devices()[0]

        def own(leaf: jax.Array) -> jax.Array:
            [copy] = [shard.data for shard in leaf.addressable_shards if shard.device == first]
            return copy

        return _in_dtype(jax.tree.map(own, params), model.dtype)
    params = _in_dtype(params, model.dtype)
    if service.count() == 1:
        return params
    return _copy_of_each_process(model, params, mesh)


def _in_dtype(params: Params, dtype: Any) -> Params:
    """The parameters as a checkpoint of this dtype has them. No copy if they have it."""
    if all(leaf.dtype == dtype for leaf in jax.tree.leaves(params)):
        return params
    return jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree))(params)


def _copy_of_each_process(model: EncoderDecoder, params: Params, mesh: Mesh) -> Params:
    """A copy on the devices of each process, split over them as under fsdp."""
    by_process: dict[int, list[jax.Device]] = {}
    for device in mesh.devices.flat:
        by_process.setdefault(device.process_index, []).append(device)
    devices = np.array([by_process[process] for process in sorted(by_process)])
    everywhere = Mesh(devices, ("process", "fsdp"))
    # In the order of `everywhere`: `jax.make_mesh` would reorder the devices of a TPU.
    own_devices = np.array(by_process[jax.process_index()]).reshape(1, -1, 1)
    here = Mesh(own_devices, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    shardings = sharding.param_shardings(here, models.logical_axes(model))

    def own(leaf: jax.Array, of_leaf: NamedSharding) -> jax.Array:
        # One at a time: a process receives the shares of the others.
        spec = PartitionSpec(*("fsdp" if part else None for part in map(_splits, of_leaf.spec)))
        copies = jax.device_put(leaf, NamedSharding(everywhere, spec))
        shares = [shard.data for shard in copies.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, of_leaf, shares)

    return jax.tree.map(own, params, shardings)


def _splits(axes: Any) -> bool:
    """Whether an axis of a parameter is split, by its entry of a `PartitionSpec`."""
    return "fsdp" in (axes if isinstance(axes, tuple) else (axes,))

"""The memory of a training run on each device, from its compiled programs, before step 1."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pid_jax import device_memory
from pid_jax.data.batching import BatchShape
from pid_jax.data.packing import PackedShape
from pid_jax.device_memory import Memory, bytes_per_device, size_text
from pid_jax.errors import UserError
from pid_jax.models import rematerialisation
from pid_jax.programs import CompiledFunction
from pid_jax.training import compiled
from pid_jax.training.step import TrainState

log = logging.getLogger(__name__)

Shape = BatchShape | PackedShape

STATE_SHARE = 0.8
"""A smaller batch helps a run whose parameters and optimizer state take less of the memory."""


class RunMemory(NamedTuple):
    """Bytes on each device."""

    parameters: int
    """Trained and frozen ones."""
    optimizer: int
    """The optimizer's state, and the average of the parameters if there is one."""
    training: Memory
    """Of a step with the largest batch. Its arguments contain parameters and optimizer state."""
    evaluation: Memory
    """Of the largest batch of validation data. Its arguments are parameters, or their average."""

    @property
    def needed(self) -> int:
        """The most that the run needs at once. The optimizer state stays during an evaluation."""
        return max(self.training.total, self.evaluation.total + self.optimizer)


def state_bytes(state: TrainState) -> tuple[int, int]:
    """Bytes on each device: of the parameters, and of the optimizer's state and the average."""
    return (
        bytes_per_device((state.params, state.frozen)),
        bytes_per_device((state.opt_state, state.ema)),
    )


def check(
    config: ConfigDict,
    mesh: Mesh,
    programs: tuple[CompiledFunction, CompiledFunction],
    state: TrainState,
    shapes: tuple[Sequence[Shape], Sequence[Shape]],
) -> None:
    """Compiles the programs for their largest batches and logs a table of the memory they need.

    programs: of the training step and of evaluation, and `shapes` those of their largest batches,
    one for each task. state: shapes with shardings. Raises UserError, with what to change, if the
    devices have less memory, and if the compiler refuses a program for that reason. With
    `config.train.check_memory=False` more memory than that is a warning.
    """
    train_step, evaluation_step = programs
    available = device_memory.of_device(mesh.local_devices[0])
    step, of_step = _largest(config, mesh, train_step, state, state, shapes[0])
    evaluation, of_evaluation = _largest(
        config, mesh, evaluation_step, state.evaluated, state, shapes[1]
    )
    needs = RunMemory(*state_bytes(state), step, evaluation)
    log.info("%s", table(needs, available, (of_step, of_evaluation)))
    if available is None or needs.needed <= available:
        return
    problem = _too_much(config, mesh, state, needs.needed, available)
    if config.train.check_memory:
        raise UserError(f"{problem}. --config.train.check_memory=False tries it anyway")
    log.warning("%s", problem)


def table(needs: RunMemory, available: int | None, shapes: tuple[Shape, Shape]) -> str:
    """The memory of a run for people, several lines."""
    of_all = "" if available is None else f" of {size_text(available)}"
    rows = {
        "parameters": size_text(needs.parameters),
        "optimizer": size_text(needs.optimizer),
        "training step": f"{size_text(needs.training.temporaries)} for {shapes[0]}",
        "evaluation": f"{size_text(needs.evaluation.temporaries)} for {shapes[1]}",
        "needed in all": f"{size_text(needs.needed)}{of_all}",
    }
    lines = [f"  {name:<16}{value}" for name, value in rows.items()]
    return "\n".join(["memory of each device, by the compiled programs", *lines])


def remedies(
    config: ConfigDict,
    *,
    devices: int,
    mesh: Mapping[str, int],
    parameter_bytes: int,
    optimizer_bytes: int,
    memory_bytes: int,
) -> list[str]:
    """What to change so that a training step fits, the most useful first.

    mesh: the sizes of `data` and `fsdp`, without -1. parameter_bytes, optimizer_bytes,
    memory_bytes: on each device.
    """
    result = []
    state_fits = parameter_bytes + optimizer_bytes < STATE_SHARE * memory_bytes
    of_device = config.data.batch_size // (mesh["data"] * mesh["fsdp"])
    counts = range(config.train.micro_batches + 1, of_device + 1)
    more = next((count for count in counts if of_device % count == 0), None)
    if state_fits and more is not None:
        result.append(
            f"parts of a batch one after another: --config.train.micro_batches={more}, the same "
            "step with the activations of a smaller batch"
        )
    if config.method == "pie":
        result.append("--config.method=pid, which encodes each document once for all its prompts")
    if config.adapter.rank and config.model.frozen_dtype == "float32":
        result.append("--config.model.frozen_dtype=bfloat16, half of the frozen parameters' memory")
    # The average of all parameters takes as much as they do.
    moments = optimizer_bytes - (parameter_bytes if config.train.ema_decay else 0)
    if config.train.ema_decay and optimizer_bytes > parameter_bytes / 2:
        result.append("--config.train.ema_decay=0, without an average of the parameters")
    if config.optimizer.name != "adafactor" and moments > parameter_bytes / 2:
        result.append(
            "--config.optimizer.name=adafactor, whose factored moments take next to no memory"
        )
    if state_fits and config.train.remat == rematerialisation.NONE:
        result.append(
            "rematerialisation: --config.train.remat=full, which computes activations twice"
        )
    if config.model.dtype == "float32":
        result.append("--config.model.dtype=bfloat16")
    if devices > 1 and mesh["data"] != 1:
        result.append(
            "parameters split over all devices: --config.mesh.data=1 --config.mesh.fsdp=-1"
        )
    return result


def _largest(
    config: ConfigDict,
    mesh: Mesh,
    program: CompiledFunction,
    first: Any,
    state: TrainState,
    shapes: Sequence[Shape],
) -> tuple[Memory, Shape]:
    """The most memory that a program needs for batches of these shapes, and the shape."""
    needs = [(_compiled(config, mesh, program, first, state, shape), shape) for shape in shapes]
    return max(needs, key=lambda need: need[0].total)


def _compiled(
    config: ConfigDict,
    mesh: Mesh,
    program: CompiledFunction,
    first: Any,
    state: TrainState,
    shape: Shape,
) -> Memory:
    batch = compiled.abstract_batch(shape, mesh)
    try:
        return device_memory.of_program(program.compile(first, batch, label=shape))
    except jax.errors.JaxRuntimeError as error:
        refused = device_memory.out_of_memory(str(error))
        if refused is None:
            raise
        raise UserError(
            f"the {program.name}: {_too_much(config, mesh, state, *refused)}"
        ) from error


def _too_much(
    config: ConfigDict, mesh: Mesh, state: TrainState, needed: int, available: int
) -> str:
    parameters, optimizer = state_bytes(state)
    advice = remedies(
        config,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        parameter_bytes=parameters,
        optimizer_bytes=optimizer,
        memory_bytes=available,
    )
    if mesh.size == 1:
        advice.append("more devices: --config.mesh.fsdp=-1 splits the parameters over them")
    if mesh.devices.flat[0].platform == "gpu":
        advice.append(
            "a larger share of the GPU's memory than 75 %: XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
        )
    needs = f"{size_text(needed)} of memory on each device" if needed else "more memory"
    return (
        f"the run needs {needs}, {size_text(parameters)} of it for parameters and "
        f"{size_text(optimizer)} for the optimizer, and a device has {size_text(available)}. "
        f"What helps: {'; '.join(advice) or 'more devices'}"
    )

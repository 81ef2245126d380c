"""Log lines and error messages of a training run."""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from pid_jax.checkpoints.verification import newest_intact
from pid_jax.models.protocol import EncoderDecoder
from pid_jax.training import step


def state_of(workdir: Path) -> str:
    """States the last intact checkpoint and the remedy, after a disk error."""
    step = newest_intact(workdir).step
    again = "Correct the problem and run the same command again"
    if step is not None:
        return f"the checkpoint of step {step} is intact. {again} to continue from there"
    return f"nothing was saved yet. {again}"


def divergence(number: int, metrics: Mapping[str, float], saved: int, workdir: Path) -> str:
    """The message for a loss, gradient or parameters that are not finite."""
    last = (
        f"the checkpoint of step {saved} in {workdir} is intact"
        if saved
        else "nothing was saved yet"
    )
    return (
        f"step {number}: the loss is {metrics['loss']}, the gradient's norm "
        f"{metrics['gradient_norm']}, the parameters' norm {metrics['parameter_norm']}. Stopped "
        f"without saving; {last}. A lower config.optimizer.learning_rate, a longer "
        "config.optimizer.warmup_steps or config.optimizer.clip_norm may help"
    )


def skipped(number: int, metrics: Mapping[str, float]) -> str:
    """The warning for a step that was skipped."""
    return (
        f"step {number} is skipped: the loss is {metrics['loss']}, the gradient's norm "
        f"{metrics['gradient_norm']}"
    )


def of_model(model: EncoderDecoder, state: step.TrainState) -> str:
    """The model type and its number of parameters."""
    trained, frozen = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for part in (state.params, state.frozen)
    )
    of_all = f", {trained:,} of them trained" if frozen else ""
    return f"{model.config.model_type} with {trained + frozen:,} parameters{of_all}"


def of_mesh(mesh: Mesh) -> str:
    """The devices, and the mesh axes of more than one device."""
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    kind = jax.devices()[0].platform
    return f"{mesh.size} {kind} device{'s' if mesh.size > 1 else ''}" + (
        f" ({axes})" if axes else ""
    )


def listed(metrics: Mapping[str, float]) -> str:
    """Metrics on one line."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())

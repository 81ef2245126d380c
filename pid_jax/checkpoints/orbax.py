"""Checkpoints of training runs, written with Orbax.

`<workdir>/checkpoints/<step>/` holds "state" (a dict of params, opt_state, step and key) and
"data" (the position of the Grain iterator). Orbax writes to a temporary name and renames at the
end, so a checkpoint that can be seen is complete, whatever killed the run.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from pid_jax import models
from pid_jax.checkpoints import huggingface
from pid_jax.errors import UserError
from pid_jax.models.protocol import EncoderDecoder, Params

CONFIG = "config.json"
MODEL = "model"
CHECKPOINTS = "checkpoints"


class RunCheckpoints:
    """The checkpoints of one run: saves in the background, keeps the last few and the best."""

    def __init__(self, workdir: str | Path, *, keep_last: int, best_metric: str) -> None:
        """`best_metric` names one of the metrics given to `save`; of "loss" the lowest is best."""
        self._best_metric = best_metric
        directory = (Path(workdir) / CHECKPOINTS).absolute()
        # What a killed run left half-written. Orbax can do this too, but in a thread that
        # nobody waits for.
        for unfinished in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            directory,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep_last),
                    policies.BestN(
                        get_metric_fn=lambda metrics: _quality(metrics, best_metric),
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        )

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, the later one of equals; None before an evaluation."""
        return _best_step(self._checkpointer, self._best_metric)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        data: Iterator[Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies state and data position, then writes them in the background.

        The caller may go on at once, donated buffers included; `wait` returns when the
        checkpoint is complete. `metrics` are those of an evaluation at this step.
        """
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": dict(state), "data": data},
            force=True,
            metrics=None if metrics is None else dict(metrics),
        )

    def restore(
        self, step: int, abstract_state: Mapping[str, Any], data: Iterator[Any]
    ) -> dict[str, Any]:
        """The state saved at `step`; `data` is moved to where it stood then.

        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with shardings.
        """
        restored = self._checkpointer.load_checkpointables(
            step, {"state": dict(abstract_state), "data": data}
        )
        return restored["state"]

    def wait(self) -> None:
        """Returns when everything saved is on disk; raises what went wrong in writing it."""
        self._checkpointer.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()


def saved_steps(workdir: str | Path) -> list[int]:
    """Steps with a complete checkpoint, ascending; none where there is no run yet."""
    names = (child.name for child in (Path(workdir) / CHECKPOINTS).glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def run_config(workdir: str | Path) -> dict[str, Any]:
    """The configuration that a run was trained by. Raises UserError where it cannot be read."""
    path = Path(workdir) / CONFIG
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the run's configuration cannot be read: {error}") from error


def trained_method(checkpoint: str | Path) -> Literal["pid", "pie"]:
    """The method that a run was trained for; "pid" of what is not a run's working directory."""
    if not (Path(checkpoint) / CHECKPOINTS).is_dir():
        return "pid"
    return run_config(checkpoint)["method"]


def load_model(
    workdir: str | Path,
    step: Literal["best", "last"] | int = "best",
    dtype: DTypeLike | None = jnp.float32,
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    """The model of a run, its parameters as `load_params` gives them, and as `huggingface.load`
    its tokenizer and its settings for generation."""
    directory = Path(workdir) / MODEL
    params = load_params(workdir, step, dtype)
    config = huggingface.read_config(directory)
    model = models.build(config, huggingface.activations_of(params))
    tokenizer = huggingface.load_tokenizer(directory)
    return model, params, tokenizer, huggingface.read_generation(directory)


def load_params(
    workdir: str | Path,
    step: Literal["best", "last"] | int = "best",
    dtype: DTypeLike | None = jnp.float32,
) -> Params:
    """The parameters of a run's checkpoint, as `dtype` (None: as saved), on the first device.

    "best" is the checkpoint that did best on the metric that the run's config names
    (checkpoint.best_metric), or the last where no evaluation was made. Raises UserError where
    there is no such checkpoint.
    """
    path = checkpoint_path(workdir, step)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    with context:
        saved = ocp.metadata(path).metadata["params"]
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding),
            saved,
        )
        return ocp.load(path, {"params": abstract})["params"]


def checkpoint_path(workdir: str | Path, step: Literal["best", "last"] | int = "best") -> Path:
    """The directory of one checkpoint of a run. Raises UserError where it is not there."""
    workdir = Path(workdir).absolute()
    directory = workdir / CHECKPOINTS
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet (nothing in {directory})")
    match step:
        case "last":
            chosen = steps[-1]
        case "best":
            metric = run_config(workdir)["checkpoint"]["best_metric"]
            with ocp.training.Checkpointer(directory) as checkpointer:
                best = _best_step(checkpointer, metric)
            chosen = steps[-1] if best is None else best
        case int() if step in steps:
            chosen = step
        case _:
            listed = ", ".join(map(str, steps))
            raise UserError(f"{workdir} has no checkpoint of step {step}: there are {listed}")
    return directory / str(chosen)


def _quality(metrics: Any, name: str) -> float:
    """The higher the better; an evaluation without the metric comes last."""
    if metrics is None or name not in metrics:
        return -float("inf")
    return -metrics[name] if name == "loss" else metrics[name]


def _best_step(checkpointer: ocp.training.Checkpointer, metric: str) -> int | None:
    ranked = [
        (_quality(checkpoint.metrics, metric), checkpoint.step)
        for checkpoint in checkpointer.checkpoints
        if checkpoint.metrics is not None and metric in checkpoint.metrics
    ]
    return max(ranked)[1] if ranked else None

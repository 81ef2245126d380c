"""Checkpoints of training runs, written with Orbax.

`<workdir>/checkpoints/<step>/` has "state" (a dict of params, opt_state, step and key), "data" (the
position of the Grain iterator) and, after an evaluation, "metrics". Orbax writes to a temporary
name and renames the checkpoint at the end, and a checkpoint is renamed before it is deleted. So
every visible checkpoint is complete, even after the run was killed. A reader locks a checkpoint,
which defers its deletion.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from pid_jax import directory_lock, models
from pid_jax.checkpoints import contents, finite, huggingface, placement
from pid_jax.errors import UserError
from pid_jax.models.protocol import EncoderDecoder, Params

T = TypeVar("T")

CONFIG = "config.json"
MODEL = "model"
CHECKPOINTS = "checkpoints"
_UNFINISHED = "*.orbax-checkpoint-tmp*"
_REMOVING = ".removing-"


class RunCheckpoints:
    """The checkpoints of one run: saves in the background, preserves the most recent and the best.

    `save` and `wait` delete all others. Only one process may use it at a time.
    """

    def __init__(self, workdir: str | Path, *, recent: int, best_metric: str) -> None:
        """recent: number of most recent checkpoints to preserve.

        best_metric: the metric of `save` that selects the best checkpoint. The lowest "loss" and
        the highest of any other metric is best.
        """
        self._workdir = Path(workdir)
        self._recent = recent
        self._best_metric = best_metric
        directory = (Path(workdir) / CHECKPOINTS).absolute()
        # Removes partially written and partially deleted checkpoints of a killed run. Orbax does
        # so only for the former, in a thread that it does not join.
        for pattern in (_UNFINISHED, f"{_REMOVING}*"):
            for unfinished in directory.glob(pattern):
                shutil.rmtree(unfinished)
        self._checkpointer = ocp.training.Checkpointer(
            directory, preservation_policy=ocp.training.preservation_policies.PreserveAll()
        )

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, the latest of equals, None before an evaluation."""
        return _best_step(self._workdir, self._best_metric)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        data: Iterator[Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the state and the position of the data, then writes them in the background.

        The caller may immediately donate the buffers of the state. `wait` returns when the
        checkpoint is complete. metrics: those of an evaluation at this step.
        """
        self.wait()
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": dict(state), "data": data},
            force=True,
            metrics=None if metrics is None else dict(metrics),
        )

    def restore(
        self, step: int, abstract_state: Mapping[str, Any], data: Iterator[Any]
    ) -> dict[str, Any]:
        """The state saved at `step`. Restores the position of `data`.

        abstract_state: a tree of `jax.ShapeDtypeStruct` with shardings.
        """
        restored = self._checkpointer.load_checkpointables(
            step, {"state": dict(abstract_state), "data": data}
        )
        return restored["state"]

    def wait(self) -> None:
        """Returns when all saved checkpoints are on disk. Raises the errors of writing them."""
        self._checkpointer.wait()
        preserved = saved_steps(self._workdir)[-self._recent :]
        for step in saved_steps(self._workdir):
            if step not in preserved and step != self.best_step:
                _remove(self._workdir / CHECKPOINTS / str(step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._checkpointer.close()
            return
        # Another error is being raised, and may be that of the save.
        with suppress(Exception):
            self._checkpointer.close()
        for unfinished in (self._workdir / CHECKPOINTS).glob(_UNFINISHED):
            shutil.rmtree(unfinished, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint, unless a process reads it."""
    with directory_lock.unread(checkpoint) as unread:
        if unread:
            removed = checkpoint.rename(checkpoint.with_name(f"{_REMOVING}{checkpoint.name}"))
            shutil.rmtree(removed)


def saved_steps(workdir: str | Path) -> list[int]:
    """Steps with a complete checkpoint, ascending. Empty without a run."""
    names = (child.name for child in (Path(workdir) / CHECKPOINTS).glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def run_config(workdir: str | Path) -> dict[str, Any]:
    """The configuration of a run. Raises UserError if it cannot be read."""
    path = Path(workdir) / CONFIG
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the run's configuration cannot be read: {error}") from error


def trained_method(checkpoint: str | Path) -> Literal["pid", "pie"]:
    """The method of a run, or "pid" if `checkpoint` is not the working directory of a run."""
    return run_config(checkpoint)["method"] if contents.is_run(checkpoint) else "pid"


def load_model(
    workdir: str | Path,
    step: Literal["best", "last"] | int = "best",
    dtype: DTypeLike | None = jnp.float32,
    *,
    on_host: bool = False,
    mesh: Mesh | None = None,
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    """Loads a run's model, its parameters, its tokenizer and its generation configuration.

    step, dtype, on_host: as in `load_params`. mesh: parameters are sharded over its devices,
    whatever mesh the run had. Raises UserError if there is no such checkpoint, and for parameters
    that the mesh does not divide.
    """
    checkpoint_path(workdir, step)  # the more helpful error if there is none
    directory = Path(workdir) / MODEL
    config = huggingface.read_config(directory)
    shardings = placement.shardings(mesh, models.build(config))
    params = load_params(workdir, step, dtype, on_host=on_host, shardings=shardings)
    model = models.build(config, huggingface.activations_of(params))
    tokenizer = huggingface.load_tokenizer(directory)
    return model, params, tokenizer, huggingface.read_generation(directory)


def load_params(
    workdir: str | Path,
    step: Literal["best", "last"] | int = "best",
    dtype: DTypeLike | None = jnp.float32,
    *,
    on_host: bool = False,
    shardings: Mapping[placement.Path, Sharding] = MappingProxyType({}),
) -> Params:
    """The parameters of a run's checkpoint in `dtype` (None: as saved), on the first device.

    on_host: arrays of NumPy instead. shardings: of parameters on other devices, by path. Each
    device then receives its share only.

    "best" is the best checkpoint by the metric in the run's config (checkpoint.best_metric), or
    the last before the first evaluation. Raises UserError if there is no such checkpoint, and for
    parameters that are not finite.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    first = SingleDeviceSharding(jax.local_devices()[0])

    def wanted(path: placement.Path, leaf: Any) -> Any:
        kind = jnp.dtype(dtype or leaf.dtype)
        if on_host:
            # Orbax reads into NumPy for an array of NumPy. This one has memory for one number.
            return np.broadcast_to(np.zeros((), kind), leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=shardings.get(path, first))

    def read(path: Path) -> Params:
        with context:
            saved = ocp.metadata(path).metadata["params"]
            abstract = {names: wanted(names, leaf) for names, leaf in flatten_dict(saved).items()}
            params = ocp.load(path, {"params": unflatten_dict(abstract)})["params"]
        for names, leaf in flatten_dict(params).items():
            problem = _why_unusable("/".join(names), leaf)
            if problem is not None:
                raise UserError(f"{path}: {problem}")
        return params

    return read_checkpoint(workdir, step, read)


def _why_unusable(name: str, leaf: jax.Array | np.ndarray) -> str | None:
    """`finite.why_unusable` of the shares that this process has, one at a time."""
    if isinstance(leaf, np.ndarray):
        return finite.why_unusable(name, leaf)
    check = finite.FiniteCheck(name)
    of_start = {}  # several devices may have the same share
    for shard in leaf.addressable_shards:
        bounds = zip(shard.index, leaf.shape, strict=True)
        of_start[tuple(part.indices(size)[0] for part, size in bounds)] = shard.data
    for start, share in of_start.items():
        # Of a copy, because an array retains the NumPy array that is made of it.
        check.add(np.asarray(jnp.copy(share)), start)
    return check.problem()


def read_checkpoint(
    workdir: str | Path, step: Literal["best", "last"] | int, read: Callable[[Path], T]
) -> T:
    """The result of `read` for the directory of a checkpoint, locked against deletion.

    Retries with the current checkpoint if a training run deletes it first. Raises UserError if
    there is no such checkpoint.
    """
    for _ in range(100):
        path = checkpoint_path(workdir, step)
        with directory_lock.reading(path) as there:
            if there:
                try:
                    return read(path)
                except Exception:
                    if path.is_dir():
                        raise
                    # Deleted, on a file system without locks.
        time.sleep(0.01)
    raise UserError(f"{path}: checkpoints are deleted faster than they can be read")


def checkpoint_path(workdir: str | Path, step: Literal["best", "last"] | int = "best") -> Path:
    """The directory of one checkpoint of a run. Raises UserError if it does not exist."""
    workdir = Path(workdir).absolute()
    directory = workdir / CHECKPOINTS
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet (nothing in {directory})")
    match step:
        case "last":
            chosen = steps[-1]
        case "best":
            best = _best_step(workdir, run_config(workdir)["checkpoint"]["best_metric"])
            chosen = steps[-1] if best is None else best
        case int() if step in steps:
            chosen = step
        case _:
            listed = ", ".join(map(str, steps))
            raise UserError(f"{workdir} has no checkpoint of step {step}: there are {listed}")
    return directory / str(chosen)


def _best_step(workdir: Path, metric: str) -> int | None:
    ranked = [
        (-metrics[metric] if metric == "loss" else metrics[metric], step)
        for step in saved_steps(workdir)
        if metric in (metrics := _metrics(workdir / CHECKPOINTS / str(step)))
    ]
    return max(ranked)[1] if ranked else None


def _metrics(checkpoint: Path) -> Mapping[str, float]:
    """The metrics at this checkpoint. Empty without an evaluation or a checkpoint."""
    try:
        return json.loads((checkpoint / "metrics" / "metrics").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}

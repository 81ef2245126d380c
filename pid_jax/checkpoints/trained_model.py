"""The model of a training run: its trained parameters, joined with the frozen ones.

Adapters are merged into the kernels. If the run has an average of its parameters, the model has the
average.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from pid_jax import models
from pid_jax.checkpoints import finite, frozen, huggingface, manifest, placement
from pid_jax.checkpoints.contents import FROZEN
from pid_jax.checkpoints.orbax import (
    CONFIG,
    MODEL,
    checkpoint_path,
    read_checkpoint,
    readable,
    run_config,
)
from pid_jax.distributed import service
from pid_jax.errors import UserError
from pid_jax.models import lora
from pid_jax.models.partition import joined
from pid_jax.models.protocol import EncoderDecoder, Params

Step = Literal["best", "last"] | int


def load_model(
    workdir: str | Path,
    step: Step = "best",
    dtype: DTypeLike | None = jnp.float32,
    *,
    on_host: bool = False,
    mesh: Mesh | None = None,
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    """Loads a run's model, its parameters, its tokenizer and its generation configuration.

    step, dtype, on_host: as in `load_params`, which also says what is raised. mesh: parameters are
    sharded over its devices, whatever mesh the run had. Raises UserError for parameters that the
    mesh does not divide.
    """
    checkpoint_path(workdir, step)  # the more helpful error if there is none
    directory = Path(workdir) / MODEL
    # Before it is read. The rest is verified when the parameters are loaded.
    manifest.check_file(directory.parent, f"{MODEL}/config.json")
    config = huggingface.read_config(directory)
    shardings = placement.shardings(mesh, models.build(config))
    params = load_params(workdir, step, dtype, on_host=on_host, shardings=shardings)
    model = models.build(config, huggingface.activations_of(params))
    tokenizer = huggingface.load_tokenizer(directory)
    return model, params, tokenizer, huggingface.read_generation(directory)


def load_params(
    workdir: str | Path,
    step: Step = "best",
    dtype: DTypeLike | None = jnp.float32,
    *,
    on_host: bool = False,
    shardings: Mapping[placement.Path, Sharding] = MappingProxyType({}),
) -> Params:
    """The parameters of a run's checkpoint in `dtype` (None: float32), on the first device.

    on_host: arrays of NumPy instead. shardings: of parameters on other devices, by path. Each
    device then receives its share only.

    "best" is the best checkpoint by the metric in the run's config (checkpoint.best_metric), or
    the last before the first evaluation. Raises UserError if there is no such checkpoint, if it or
    the run's description is damaged, and for parameters that are not finite.
    """
    dtype = jnp.dtype(dtype or jnp.float32)
    everywhere = _replicated(shardings)

    def wanted(path: placement.Path, leaf: Any, adapted: bool) -> Any:
        # Kernels with an adapter are rounded once, after the sum.
        kind = jnp.dtype(jnp.float32) if adapted else dtype
        if on_host:
            # Orbax reads into NumPy for an array of NumPy. This one has memory for one number.
            return np.broadcast_to(np.zeros((), kind), leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=shardings.get(path, everywhere))

    def read(path: Path) -> Params:
        params = _read(path, wanted, everywhere)
        if not any(map(lora.is_adapter, flatten_dict(params))):
            return params
        adapter = adapter_of(run_config(path.parents[1]))
        if adapter is None:
            raise UserError(
                f"{path.parents[1] / CONFIG}: config.adapter.rank is 0, but {path} has an adapter"
            )
        return lora.merged(params, adapter.scale, dtype)

    return read_checkpoint(workdir, step, read)


def load_adapter(workdir: str | Path, step: Step = "best") -> dict[placement.Path, np.ndarray]:
    """The matrices of a run's adapter, float32 on the host, by path. Empty without one.

    Raises UserError as `load_params`.
    """

    def wanted(path: placement.Path, leaf: Any, adapted: bool) -> Any:
        del path, adapted
        return np.broadcast_to(np.zeros((), np.float32), leaf.shape)

    def read(path: Path) -> dict[placement.Path, np.ndarray]:
        return flatten_dict(_read(path, wanted, None, only=lora.is_adapter))

    return read_checkpoint(workdir, step, read)


def adapter_of(config: Mapping[str, Any]) -> lora.Lora | None:
    """The adapter that the configuration of a run describes. None without one."""
    options = config.get("adapter", {})
    if not options.get("rank"):
        return None
    return lora.Lora(
        rank=options["rank"],
        alpha=float(options["alpha"]),
        targets=options["targets"],
        dropout=float(options["dropout"]),
    )


def _read(
    path: Path,
    wanted: Callable[[placement.Path, Any, bool], Any],
    everywhere: Sharding | None,
    only: Callable[[placement.Path], bool] = lambda path: True,
) -> dict[str, Any]:
    """The parameters of a checkpoint, joined with the frozen ones.

    wanted: what Orbax reads for a path, its metadata, and whether it is part of an adapted kernel.
    everywhere: the sharding of arrays without one of their own. None on the host. only: which
    parameters are read.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    if everywhere is None or everywhere.is_fully_addressable:
        # Each process loads a copy of its own, perhaps at another time than others.
        context.multiprocessing.active_processes = {service.index()}
        context.multiprocessing.primary_host = service.index()
    with readable(path), context:
        saved = ocp.metadata(path).metadata
        trained = frozen.AVERAGED if frozen.AVERAGED in saved else "params"
        of_frozen = frozen.metadata(path) or {}
        adapted = {names[:-1] for names in flatten_dict(saved[trained]) if lora.is_adapter(names)}

        def is_summed(path: placement.Path) -> bool:
            return path[:-1] in adapted and (path[-1] == lora.KERNEL or lora.is_adapter(path))

        def chosen(metadata: Mapping[str, Any]) -> dict[str, Any]:
            flat = flatten_dict(metadata).items()
            return unflatten_dict({p: wanted(p, leaf, is_summed(p)) for p, leaf in flat if only(p)})

        parts = [chosen(saved[trained]), chosen(of_frozen)]
        params = ocp.load(path, {trained: parts[0]})[trained] if parts[0] else {}
        if parts[1]:
            params = joined(params, ocp.load(path.with_name(FROZEN), parts[1]))
    for names, leaf in flatten_dict(params).items():
        problem = _why_unusable("/".join(names), leaf)
        if problem is not None:
            raise UserError(f"{path}: {problem}")
    return params


def _replicated(shardings: Mapping[placement.Path, Sharding]) -> Sharding:
    """The sharding of arrays that no mesh splits."""
    one = next(iter(shardings.values()), None)
    if isinstance(one, NamedSharding):
        return NamedSharding(one.mesh, PartitionSpec())
    return SingleDeviceSharding(jax.local_devices()[0])


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

"""What `PidModel.from_pretrained` loads: a model, its parameters and what belongs to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pid_jax import arguments, models, sharding
from pid_jax.backends.settings import compiling_for, placement_of
from pid_jax.checkpoints import contents, huggingface, peft
from pid_jax.checkpoints.partial import PartialInit
from pid_jax.compilation_cache import enable_compilation_cache
from pid_jax.errors import UserError
from pid_jax.models.protocol import EncoderDecoder, Params


def load(
    path: str | Path,
    dtype: DTypeLike,
    weights: str | None,
    mesh: Mapping[str, int] | Mesh | None = None,
    partial_init: PartialInit | None = None,
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    """A model, its parameters, its tokenizer (or None) and its generation configuration.

    partial_init: loads what fits a model with another configuration. The other arguments are those
    of `PidModel.from_pretrained`, which says what is raised.
    """
    dtype = _dtype(dtype)
    if weights not in (None, "int8"):
        raise UserError(f"weights={weights!r} is not supported; supported: 'int8', None")
    if weights == "int8" and mesh is not None:
        raise UserError(
            'weights="int8" is not supported with a mesh: omit one of them, or use dtype="bfloat16"'
        )
    devices = _mesh(mesh)
    enable_compilation_cache()
    if weights is None:
        return _read(path, dtype, mesh=devices, partial_init=partial_init)
    # Weights in 8 bits are rounded from those of the checkpoint, not from bfloat16. The host rounds
    # them: a device may have memory for the integers only.
    read_as = None if dtype is None else jnp.dtype("float32")
    model, params, tokenizer, generation = _read(path, read_as, on_host=True)
    model = models.build(model.config, model.dtype if dtype is None else dtype)
    default_device = jax.device_put(np.zeros(()))
    with compiling_for(*placement_of(default_device)):
        integers = jax.device_put(model.int8_params(params))
    return model, integers, tokenizer, generation


def _read(
    path: str | Path,
    dtype: DTypeLike | None,
    *,
    on_host: bool = False,
    mesh: Mesh | None = None,
    partial_init: PartialInit | None = None,
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    with contents.reading(path):
        run = contents.run_of(path)
        if run is None:
            directory = huggingface.find(path)
            if peft.is_adapter(directory):
                return peft.load(
                    directory, dtype, on_host=on_host, mesh=mesh, partial_init=partial_init
                )
            return huggingface.load(
                path, dtype, on_host=on_host, mesh=mesh, partial_init=partial_init
            )
        if partial_init is not None:
            raise UserError(
                f"{path} is a training run, of which no part can be loaded: export it with "
                "`python -m pid_jax.export` and name the exported directory"
            )
        from pid_jax.checkpoints import trained_model  # imports Orbax

        return trained_model.load_model(run.workdir, run.step, dtype, on_host=on_host, mesh=mesh)


def _mesh(mesh: Mapping[str, int] | Mesh | None) -> Mesh | None:
    if mesh is None or isinstance(mesh, Mesh):
        return mesh
    listed = ", ".join(map(repr, sharding.MESH_AXES))
    if not isinstance(mesh, Mapping) or not set(mesh) <= set(sharding.MESH_AXES):
        raise UserError(f"mesh={mesh!r} is not supported: pass a dict with sizes for {listed}")
    sizes: dict[str, Any] = {
        name: arguments.integer(f"mesh[{name!r}]", size, at_least=-1) for name, size in mesh.items()
    }
    # Each of several processes has a model of its own.
    return sharding.make_mesh(**sizes, devices=jax.local_devices())


def _dtype(dtype: DTypeLike) -> Any:
    """None for "auto"."""
    if dtype == "auto":
        return None
    name = jnp.dtype(dtype).name if not isinstance(dtype, str) else dtype
    if name not in ("float32", "bfloat16"):
        supported = "'float32', 'bfloat16', 'auto'"
        raise UserError(f"dtype={name!r} is not supported; supported: {supported}")
    return jnp.dtype(name)

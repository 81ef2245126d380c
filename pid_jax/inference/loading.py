"""What `PidModel.from_pretrained` loads: a model, its parameters and what belongs to them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pid_jax import models
from pid_jax.backends.settings import compiling_for, placement_of
from pid_jax.checkpoints import contents, huggingface
from pid_jax.compilation_cache import enable_compilation_cache
from pid_jax.errors import UserError
from pid_jax.models.protocol import EncoderDecoder, Params


def load(
    path: str | Path, dtype: DTypeLike, weights: str | None
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    """A model, its parameters, its tokenizer (or None) and its generation configuration.

    The arguments are those of `PidModel.from_pretrained`, which says what is raised.
    """
    dtype = _dtype(dtype)
    if weights not in (None, "int8"):
        raise UserError(f"weights={weights!r} is not supported; supported: 'int8', None")
    enable_compilation_cache()
    if weights is None:
        return _read(path, dtype)
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
    path: str | Path, dtype: DTypeLike | None, *, on_host: bool = False
) -> tuple[EncoderDecoder, Params, Any | None, dict[str, Any]]:
    with contents.reading(path):
        run = contents.run_of(path)
        if run is not None:
            from pid_jax.checkpoints import orbax

            return orbax.load_model(run.workdir, run.step, dtype, on_host=on_host)
        return huggingface.load(path, dtype, on_host=on_host)


def _dtype(dtype: DTypeLike) -> Any:
    """None for "auto"."""
    if dtype == "auto":
        return None
    name = jnp.dtype(dtype).name if not isinstance(dtype, str) else dtype
    if name not in ("float32", "bfloat16"):
        supported = "'float32', 'bfloat16', 'auto'"
        raise UserError(f"dtype={name!r} is not supported; supported: {supported}")
    return jnp.dtype(name)

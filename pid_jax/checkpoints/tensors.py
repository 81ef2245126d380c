"""Tensors of a Hugging Face checkpoint: safetensors files to a tree of parameters."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from pid_jax import models
from pid_jax.checkpoints import contents, finite
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, Family, Params

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


def match_tensors(
    family: Family, config: Config, tensors: Mapping[str, Any]
) -> tuple[Config, dict[str, str]]:
    """Matches the checkpoint's tensors to the family's names, and removes redundant aliases.

    An alias is redundant if its tensor equals the aliased one. Returns the configuration for the
    remaining tensors, and a map from the family's names to those in the checkpoint.
    """
    known = family.tensors(config).keys() | family.aliases.keys() | family.ignored
    names: dict[str, str] = {}
    left_out = []
    for name in tensors:
        renamed = family.rename(name)
        if renamed is None:
            left_out.append(name)
            continue
        prefixed = family.prefix + renamed
        full = prefixed if renamed not in known and prefixed in known else renamed
        if full not in family.ignored:
            names[full] = name
    if left_out:
        log.warning(
            "%s: %d tensors of unsupported parts are left out, such as %s",
            family.about.name,
            len(left_out),
            left_out[0],
        )
    for alias, name in family.aliases.items():
        if alias not in names:
            continue
        if name not in names:
            names[name] = names.pop(alias)
        elif np.array_equal(tensors[names[alias]](), tensors[names[name]]()):
            del names[alias]
    return config.with_tensors(names), names


def read_params(
    config: Config,
    family: Family,
    names: Mapping[str, str],
    tensors: Mapping[str, Callable[[], np.ndarray]],
    directory: Path,
    dtype: DTypeLike | None,
    *,
    on_host: bool = False,
) -> Params:
    """The tree of parameters in `dtype` (None: that of each tensor).

    names: as returned by `match_tensors`. directory: for messages. on_host: arrays of NumPy instead
    of arrays on the default device. Raises UserError that lists missing, unexpected, misshapen and
    unusable tensors.
    """
    locations = family.tensors(config)
    expected = flatten_dict(models.abstract_params(models.build(config)))
    problems = []
    of_path: dict[tuple[str, ...], str] = {}
    for name in sorted(locations.keys() & names.keys()):
        other = of_path.setdefault(locations[name].path, name)
        if other != name:
            problems.append(f"{name} differs from {other}, but the model has one tensor for both")
    made = {
        locations[name].path: make
        for name, make in family.defaults.items()
        if locations[name].path not in of_path
    }
    present = of_path.keys() | made.keys()
    missing = sorted(name for name, place in locations.items() if place.path not in present)
    extra = sorted(names.keys() - locations.keys())
    problems += [f"missing: {name}" for name in missing]
    problems += [f"not of this model: {name}" for name in extra]
    asarray = _on_host if on_host else jnp.asarray
    leaves = {}
    for path, name in of_path.items():
        transposed = locations[name].transposed
        tensor = tensors[names[name]]()
        tensor = tensor.T if transposed else tensor
        wanted = expected[path].shape
        if tensor.shape != wanted:
            shapes = (tensor.shape[::-1], wanted[::-1]) if transposed else (tensor.shape, wanted)
            problems.append(f"{name} has shape {shapes[0]}, but config.json requires {shapes[1]}")
        elif (problem := finite.why_unusable(name, tensor)) is not None:
            problems.append(problem)
        elif not problems:
            leaves[path] = asarray(np.ascontiguousarray(tensor), dtype)
    for path, make in made.items():
        made_as = dtype or next((leaf.dtype for leaf in leaves.values()), None)
        leaves[path] = asarray(make(expected[path].shape), made_as)
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise UserError(f"{directory}: tensors that cannot be used:\n  " + "\n  ".join(shown))
    return unflatten_dict(leaves)


def _on_host(tensor: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    """The numbers of `jnp.asarray`, which has no float64 by default."""
    return tensor.astype(dtype or jax.dtypes.canonicalize_dtype(tensor.dtype), copy=False)


@contextmanager
def open_weights(directory: Path) -> Iterator[Mapping[str, Callable[[], np.ndarray]]]:
    """A function per tensor name that reads the tensor.

    Raises UserError for missing and damaged files.
    """
    import safetensors

    index = directory / WEIGHTS_INDEX
    for path in (directory / WEIGHTS, index):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: a symbolic link to {path.readlink()}, which does not exist")
    if (directory / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif index.is_file():
        weight_map = contents.read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f'{index}: "weight_map" is missing')
        files = sorted(set(weight_map.values()))
    else:
        names = [path.name for path in directory.iterdir()]
        raise UserError(contents.why_no_weights(str(directory), names))
    with ExitStack() as stack:
        tensors: dict[str, Callable[[], np.ndarray]] = {}
        for name in files:
            path = directory / name
            if path.parent.resolve() != directory.resolve() or not path.is_file():
                raise UserError(f"{index}: the shard {name!r} is not in the directory")
            contents.check_readable(path)
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(f"{path}: not a complete safetensors file ({error})") from error
            for tensor in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensors[tensor] = _reader(file, tensor)
        yield tensors


def _reader(file: Any, name: str) -> Callable[[], np.ndarray]:
    return lambda: file.get_tensor(name)

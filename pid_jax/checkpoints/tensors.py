"""Tensors of a Hugging Face checkpoint: safetensors files to a tree of parameters."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pid_jax import models
from pid_jax.checkpoints import contents, finite, partial, placement
from pid_jax.checkpoints.partial import PartialInit, initialised, joined
from pid_jax.checkpoints.placement import Bounds, Destination
from pid_jax.checkpoints.stored_tensor import StoredParameter, StoredTensor, equal
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, EncoderDecoder, Family, Params

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


def match_tensors(
    family: Family, config: Config, tensors: Mapping[str, StoredTensor]
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
        elif equal(tensors[names[alias]], tensors[names[name]]):
            del names[alias]
    return config.with_tensors(names), names


def read_params(
    config: Config,
    family: Family,
    names: Mapping[str, str],
    tensors: Mapping[str, StoredTensor],
    directory: Path,
    dtype: DTypeLike | None,
    *,
    on_host: bool = False,
    mesh: Mesh | None = None,
    partial_init: PartialInit | None = None,
) -> Params:
    """The tree of parameters in `dtype` (None: that of each tensor).

    names: as returned by `match_tensors`. directory: for messages. on_host: arrays of NumPy instead
    of arrays on the default device. mesh: arrays that are sharded over its devices. This process
    then reads the shares of its own devices, one at a time. partial_init: initialises parameters
    that the checkpoint lacks or has in another shape. Raises UserError that lists missing,
    unexpected, misshapen and unusable tensors, unless `partial_init` allows them.
    """
    locations = family.tensors(config)
    model = models.build(config)
    shapes = {p: leaf.shape for p, leaf in flatten_dict(models.abstract_params(model)).items()}
    destination = Destination(dtype, placement.shardings(mesh, model), on_host)
    problems = []
    sources: dict[placement.Path, StoredParameter] = {}
    for name in sorted(locations.keys() & names.keys()):
        path, transposed = locations[name]
        source = StoredParameter(name, tensors[names[name]], transposed)
        other = sources.setdefault(path, source).name
        if other != name:
            problems.append(f"{name} differs from {other}, but the model has one tensor for both")
    made = {
        locations[name].path: make
        for name, make in family.defaults.items()
        if locations[name].path not in sources
    }
    present = sources.keys() | made.keys()
    missing = sorted(name for name, place in locations.items() if place.path not in present)
    extra = sorted(names.keys() - locations.keys())
    new: dict[placement.Path, jax.Array] = {}
    extended: dict[placement.Path, int] = {}
    if partial_init is None:
        problems += [f"missing: {name}" for name in missing]
        problems += [f"not of this model: {name}" for name in extra]
    else:
        sources, extended = _fitting(model, shapes, sources, missing, extra)
        absent = shapes.keys() - made.keys() - (sources.keys() - extended.keys())
        new = initialised(model, partial_init.seed, sorted(absent), destination.shardings)
    leaves: dict[placement.Path, Any] = {}
    for path, source in sources.items():
        if source.shape != shapes[path] and path not in extended:
            problems.append(source.misfit(shapes[path]))
            continue
        check = finite.FiniteCheck(source.name)
        read = _checked(source, check)
        if problems:  # which the error lists with those of this tensor
            for bounds in destination.shares(path, shapes[path]):
                read(bounds)
        else:
            leaves[path] = destination.load(path, shapes[path], read)
        if (problem := check.problem()) is not None:
            problems.append(problem)
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise UserError(f"{directory}: tensors that cannot be used:\n  " + "\n  ".join(shown))
    stored = next((leaf.dtype for leaf in leaves.values()), None)
    for path, make in made.items():
        values = make(shapes[path])
        leaves[path] = destination.load(path, values.shape, _slicing(values), dtype or stored)
    for path, leaf in new.items():
        if path in extended:
            axis = extended[path]
            leaves[path] = joined(leaves[path], leaf, sources[path].shape[axis], axis)
        else:
            leaves[path] = leaf.astype(dtype or stored)
    return unflatten_dict(leaves)


def _fitting(
    model: EncoderDecoder,
    shapes: Mapping[placement.Path, tuple[int, ...]],
    sources: Mapping[placement.Path, StoredParameter],
    missing: list[str],
    extra: list[str],
) -> tuple[dict[placement.Path, StoredParameter], dict[placement.Path, int]]:
    """What a partial load reads: tensors of the right shape, or with another vocabulary.

    Returns the sources, and the axis of the vocabulary of those with another one. Logs the others.
    """
    logical = flatten_dict(models.logical_axes(model))
    fitting, axes, unfit = {}, {}, []
    for path, source in sources.items():
        if source.shape != shapes[path]:
            axis = partial.vocabulary_axis(source.shape, shapes[path], logical[path])
            if axis is None:
                unfit.append(source.name)
                continue
            axes[path] = axis
        fitting[path] = source
    vocabularies = {
        fitting[path].name: (fitting[path].shape[axis], shapes[path][axis])
        for path, axis in axes.items()
    }
    partial.report(sorted(missing + unfit), sorted(extra + unfit), vocabularies)
    return fitting, axes


def _checked(source: StoredParameter, check: finite.FiniteCheck) -> Callable[[Bounds], np.ndarray]:
    """`source.read`, which also checks what it reads."""

    def read(bounds: Bounds) -> np.ndarray:
        values = source.read(bounds)
        check.add(values, [start for start, _ in bounds])
        return values

    return read


def _slicing(values: np.ndarray) -> Callable[[Bounds], np.ndarray]:
    return lambda bounds: values[tuple(slice(*pair) for pair in bounds)]


@contextmanager
def open_weights(directory: Path) -> Iterator[Mapping[str, StoredTensor]]:
    """The tensors of a directory, by name.

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
        tensors: dict[str, StoredTensor] = {}
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
                tensors[tensor] = StoredTensor(file, tensor)
        yield tensors

"""Parameters on their devices, without a copy of all of them on one host or one device.

A device receives its share of each parameter. The host reads one share at a time, and each share
once, even if several devices have the same.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, Sharding
from jax.typing import DTypeLike

from pid_jax import models, sharding
from pid_jax.errors import UserError
from pid_jax.models.protocol import EncoderDecoder
from pid_jax.sharding import AnyMesh

Path = tuple[str, ...]
Bounds = tuple[tuple[int, int], ...]
"""A slice of an array: for each axis the first index, and the one after the last."""


def whole(shape: Sequence[int]) -> Bounds:
    """The bounds of a whole array."""
    return tuple((0, size) for size in shape)


def slices(bounds: Bounds) -> tuple[slice, ...]:
    """Bounds as an index of NumPy."""
    return tuple(slice(*pair) for pair in bounds)


def shardings(mesh: AnyMesh | None, model: EncoderDecoder) -> Mapping[Path, NamedSharding]:
    """The sharding of each parameter on a mesh, by path. Empty without a mesh.

    Raises UserError for a parameter that the mesh does not divide.
    """
    if mesh is None:
        return {}
    of_path = flatten_dict(sharding.param_shardings(mesh, models.logical_axes(model)))
    for path, leaf in flatten_dict(models.abstract_params(model)).items():
        parts = [_parts(mesh, axes) for axes in of_path[path].spec]
        for size, number in zip(leaf.shape, parts, strict=False):
            if size % number:
                sizes = ", ".join(f"{name}={mesh.shape[name]}" for name in mesh.axis_names)
                raise UserError(
                    f"a mesh of {sizes} splits {'/'.join(path)} of shape {leaf.shape} into "
                    f"{number} parts, which do not divide {size}: use other sizes of the mesh"
                )
    return of_path


def _parts(mesh: AnyMesh, axes: Any) -> int:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names)


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where parameters are loaded to, and in which dtype."""

    dtype: DTypeLike | None = None
    """None for that of each stored tensor."""
    shardings: Mapping[Path, Sharding] = dataclasses.field(default_factory=dict)
    """By path. Other parameters are on the default device."""
    on_host: bool = False
    """Arrays of NumPy instead."""

    def shares(self, path: Path, shape: Sequence[int]) -> list[Bounds]:
        """The distinct shares of a parameter that this process reads."""
        sharding = self.shardings.get(path)
        return [whole(shape)] if sharding is None else list(_devices(shape, sharding))

    def load(
        self,
        path: Path,
        shape: Sequence[int],
        read: Callable[[Bounds], np.ndarray],
        dtype: DTypeLike | None = None,
    ) -> Any:
        """A parameter from the shares that `read` returns.

        dtype: None for that of the destination. Returns after the transfers, so that the host has
        the buffer of one share only.
        """
        dtype = self.dtype if dtype is None else dtype
        sharding = self.shardings.get(path)
        if self.on_host:
            return _converted(read(whole(shape)), dtype)
        if sharding is None:
            return jnp.asarray(np.ascontiguousarray(read(whole(shape))), dtype)
        arrays = []
        for bounds, devices in _devices(shape, sharding).items():
            share = _converted(read(bounds), dtype)
            arrays += [jax.device_put(share, device) for device in devices]
            jax.block_until_ready(arrays)
        return jax.make_array_from_single_device_arrays(tuple(shape), sharding, arrays)


def _converted(tensor: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    """The numbers of `jnp.asarray`, which has no float64 by default."""
    dtype = dtype or jax.dtypes.canonicalize_dtype(tensor.dtype)
    return np.ascontiguousarray(tensor).astype(dtype, copy=False)


def _devices(shape: Sequence[int], sharding: Sharding) -> dict[Bounds, list[jax.Device]]:
    """The devices of this process that have each share."""
    devices: dict[Bounds, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
        bounds = tuple(
            part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True)
        )
        devices.setdefault(bounds, []).append(device)
    return devices

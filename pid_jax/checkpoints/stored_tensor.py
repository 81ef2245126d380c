"""A tensor of a safetensors file, of which any slice can be read."""

import dataclasses
import math
from typing import Any

import numpy as np

from pid_jax.checkpoints import placement
from pid_jax.checkpoints.placement import Bounds

_COMPARED = 2**22  # numbers that are compared at a time


class StoredTensor:
    """A tensor in a safetensors file, read when it is called."""

    def __init__(self, file: Any, name: str) -> None:
        """file: as returned by `safetensors.safe_open`."""
        self._file = file
        self._name = name
        self.shape: tuple[int, ...] = tuple(file.get_slice(name).get_shape())

    def __call__(self, bounds: Bounds | None = None) -> np.ndarray:
        """The slice of these bounds, None for the whole tensor."""
        if bounds is None or bounds == placement.whole(self.shape):
            return self._file.get_tensor(self._name)
        return self._file.get_slice(self._name)[tuple(slice(*pair) for pair in bounds)]


@dataclasses.dataclass(frozen=True)
class StoredParameter:
    """The stored tensor of one parameter."""

    name: str
    """In the family's mapping."""
    tensor: StoredTensor
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """As the parameter has it."""
        return self._oriented(self.tensor.shape)

    def read(self, bounds: Bounds) -> np.ndarray:
        """A slice of the parameter. Numbers beyond the stored shape are zero."""
        common = tuple(
            (min(start, size), min(stop, size))
            for (start, stop), size in zip(bounds, self.shape, strict=True)
        )
        values = self.tensor(self._oriented(common))
        values = values.T if self.transposed else values
        if common == bounds:
            return values
        absent = [stop - start for start, stop in bounds]
        absent = [size - own for size, own in zip(absent, values.shape, strict=True)]
        return np.pad(values, [(0, number) for number in absent])

    def misfit(self, shape: tuple[int, ...]) -> str:
        """How the stored shape differs from that of the parameter, `shape`."""
        wanted = self._oriented(shape)
        return f"{self.name} has shape {self.tensor.shape}, but config.json requires {wanted}"

    def _oriented(self, of_axes: tuple[Any, ...]) -> tuple[Any, ...]:
        return of_axes[::-1] if self.transposed else of_axes


def equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same numbers. Reads a few rows of each at a time."""
    if one.shape != other.shape:
        return False
    if not one.shape:
        return np.array_equal(one(), other())
    inner = placement.whole(one.shape[1:])
    step = max(1, _COMPARED // max(1, math.prod(one.shape[1:])))
    for start in range(0, one.shape[0], step):
        bounds = ((start, min(start + step, one.shape[0])), *inner)
        if not np.array_equal(one(bounds), other(bounds)):
            return False
    return True

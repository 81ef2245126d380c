"""Rows of batches: those that the devices of this process have, and their transfer."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Int


def own_rows(rows: Sharding, count: int) -> Int[np.ndarray, " own"]:
    """The rows of a batch that the devices of this process have, ascending.

    rows: the sharding of a batch. count: the rows of the batch in all processes. Processes whose
    devices differ along a tensor axis only have the same rows.
    """
    numbers = np.arange(count)
    of_devices = rows.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([numbers[index] for index in of_devices]))


def share_of_rows(rows: Sharding) -> float:
    """The share of the rows of a batch that this process has, from 0 to 1."""
    if rows.is_fully_addressable:
        return 1.0
    parts = _parts(rows)
    return len(own_rows(rows, parts)) / parts


def placed(batch: Any, rows: Sharding) -> Any:
    """A batch on its devices.

    batch: a tree of NumPy arrays with the `own_rows` of this process. Returns arrays with the rows
    of all processes.
    """
    if rows.is_fully_addressable:
        return jax.device_put(batch, rows)
    share = share_of_rows(rows)

    def place(array: np.ndarray) -> jax.Array:
        count = round(len(array) / share)
        position = {int(row): at for at, row in enumerate(own_rows(rows, count))}

        def of_device(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            return array[position[start] : position[start] + stop - start]

        return jax.make_array_from_callback((count, *array.shape[1:]), rows, of_device)

    return jax.tree.map(place, batch)


def _parts(rows: Sharding) -> int:
    """A number of rows that the sharding divides: the number of devices."""
    return len(rows.device_set)

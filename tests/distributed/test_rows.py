"""Rows of batches on their devices."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pid_jax import sharding
from pid_jax.distributed import rows


class Devices:
    """A sharding of which one process has some devices, by their slices of the rows."""

    is_fully_addressable = False

    def __init__(self, parts, own):
        self.parts, self.own = parts, own
        self.device_set = set(range(parts))

    def addressable_devices_indices_map(self, shape):
        size = shape[0] // self.parts
        return {part: (slice(part * size, (part + 1) * size),) for part in self.own}


def test_a_process_has_the_rows_of_its_devices():
    assert rows.own_rows(Devices(4, [2, 3]), 8).tolist() == [4, 5, 6, 7]
    assert rows.own_rows(Devices(4, [3, 0]), 8).tolist() == [0, 1, 6, 7]
    assert rows.share_of_rows(Devices(4, [3, 0])) == 0.5


def test_devices_along_a_tensor_axis_have_the_same_rows():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.MESH_AXES)
    everywhere = NamedSharding(mesh, PartitionSpec())
    assert rows.own_rows(everywhere, 3).tolist() == [0, 1, 2]
    assert rows.share_of_rows(everywhere) == 1.0


def test_a_single_process_transfers_its_whole_batch():
    batch = {"documents": np.arange(6).reshape(3, 2), "mask": np.ones(3, bool)}
    here = sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:1]))
    on_device = rows.placed(batch, here)
    assert on_device["documents"].sharding == here
    np.testing.assert_array_equal(on_device["documents"], batch["documents"])

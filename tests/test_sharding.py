"""The mesh, and the one table that lays parameters and batches on it."""

import jax
import pytest
from jax.sharding import PartitionSpec

from pid_jax import models, sharding
from pid_jax.errors import UserError
from tests.helpers.tiny_t5 import TINY


@pytest.mark.parametrize("model_type", models.model_types())
def test_every_logical_axis_of_the_parameters_stands_in_the_table(model_type):
    named = {name for name, _ in sharding.LOGICAL_AXIS_RULES} | {None}
    tied = model_type == "t5gemma2"  # which has no head of its own
    small = TINY | {"encoder_layers": 1, "decoder_layers": 1, "tie_word_embeddings": tied}
    axes = models.logical_axes(models.build(small | {"model_type": model_type}))
    leaves = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    assert leaves
    assert {axis for spec in leaves for axis in spec} <= named


def test_kernels_are_split_over_tensor_and_fsdp_by_their_axes():
    mesh = sharding.make_mesh()
    shardings = sharding.param_shardings(mesh, models.logical_axes(models.build(TINY)))
    attention = shardings["encoder"]["layers_0"]["self_attention"]
    assert attention["query"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert attention["output"]["kernel"].spec == PartitionSpec("tensor", "fsdp")
    assert shardings["shared"]["embedding"].spec == PartitionSpec("tensor", "fsdp")


def test_batches_are_split_over_data_and_fsdp():
    spec = sharding.batch_sharding(sharding.make_mesh()).spec
    assert spec == PartitionSpec(("data", "fsdp"))


def test_the_mesh_takes_what_devices_are_left():
    devices = jax.device_count()
    assert dict(sharding.make_mesh().shape) == {"data": devices, "fsdp": 1, "tensor": 1}
    assert dict(sharding.make_mesh(1, -1, 1).shape) == {"data": 1, "fsdp": devices, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, -1, 1), "-1 for one of them"),
        ((0, 1, 1), "at least 1"),
        ((1, 1, 977), "data=1, fsdp=1, tensor=977 does not fit"),
        ((-1, 1, 977), "does not fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(*sizes)

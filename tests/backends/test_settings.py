"""The settings of each backend."""

import jax
import numpy as np
import pytest

from pid_jax import models, sharding
from pid_jax.backends import settings
from tests.helpers.tiny_t5 import TINY


def test_only_a_cpu_has_options_of_the_compiler():
    assert settings.compiler_options("cpu") == {"xla_cpu_copy_insertion_use_region_analysis": True}
    assert settings.compiler_options("tpu") == settings.compiler_options("gpu") == {}


def test_only_a_gpu_has_options_of_one_program():
    assert settings.options_of_program("gpu", "decode")
    assert settings.options_of_program("gpu", "prefill") == {}
    assert settings.options_of_program("cpu", "decode") == {}


def test_changing_the_options_changes_no_table():
    settings.compiler_options("cpu").clear()
    assert settings.compiler_options("cpu")


@pytest.mark.parametrize(("platform", "repeated"), [("cpu", True), ("tpu", False), ("gpu", False)])
def test_only_a_cpu_decodes_with_transposed_kernels(platform, repeated):
    model = models.build(TINY)
    with settings.compiling_for(platform):
        params = jax.eval_shape(model.decoding_params, models.abstract_params(model))
    assert ("transposed_head" in params) == repeated
    dense = params["decoder"]["layers_0"]["feed_forward"]["wi"]
    assert ("transposed" in dense) == repeated


class OnDevice:
    """An array on devices."""

    shape = ()

    def __init__(self, sharding):
        self.sharding = sharding


def test_the_placement_is_that_of_the_first_array_on_a_device():
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = OnDevice(here)
    empty: dict = {}
    for tree in (
        {"empty": empty, "kernel": placed},
        {"numpy": {"kernel": np.ones(3)}, "layer": {"kernel": placed}},
        (np.ones(3), {"numpy": np.ones(2), "kernel": placed}),
        [1, None, placed],
    ):
        assert settings.placement_of(tree) == ("cpu", 1, None)
    assert settings.placement_of({"numpy": np.ones(3)}, empty, 3) == (None, 1, None)
    assert settings.placement_of(np.ones(3), placed) == ("cpu", 1, None)


def test_the_placement_of_a_mesh_is_that_of_all_its_devices():
    mesh = sharding.make_mesh()
    placed = OnDevice(sharding.batch_sharding(mesh))
    placement = settings.placement_of({"kernel": placed})
    assert placement.devices == mesh.size
    assert placement.mesh == (mesh if mesh.size > 1 else None)
    with settings.compiling_for("cpu", 8, mesh):
        assert sharding.current_mesh() is mesh
    assert sharding.current_mesh() is None

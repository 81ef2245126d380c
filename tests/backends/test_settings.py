"""The settings of each backend."""

import jax
import pytest

from pid_jax import models
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

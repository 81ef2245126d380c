"""The mesh, and the one table that lays parameters and batches on it."""

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

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


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((4, 3))
    assert sharding.constrain(x, "batch", None) is x
    assert sharding.gathered(x, "embed", "mlp") is x
    assert sharding.shares("batch") == 1


def constraints(mesh, function, *arguments):
    """The sharding of each constraint in the traced function, in order."""
    with sharding.tracing_for(mesh):
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr

    def inside(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "sharding_constraint":
                yield equation.params["sharding"].spec
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from inside(inner)

    return list(inside(jaxpr))


@pytest.fixture
def absent():
    """A mesh of 2 x 2 x 2 devices, which only tracing needs."""
    return AbstractMesh((2, 2, 2), sharding.MESH_AXES)


def test_activations_are_split_by_documents_and_their_last_axis_by_its_name(absent):
    whole = jnp.ones((8, 5, 6))
    (spec,) = constraints(absent, lambda x: sharding.constrain_features(x, "mlp"), whole)
    assert spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    (spec,) = constraints(absent, lambda x: sharding.constrain_features(x, None), whole)
    assert spec == PartitionSpec(("data", "fsdp"), None, None)
    with sharding.tracing_for(absent):
        assert sharding.shares("batch") == 4
        assert sharding.shares("vocab") == 2
        assert sharding.shares("length") == 1


def test_an_axis_that_the_mesh_does_not_divide_is_whole(absent):
    (spec,) = constraints(absent, lambda x: sharding.constrain(x, "batch", "mlp"), jnp.ones((8, 5)))
    assert spec == PartitionSpec(("data", "fsdp"), None)
    assert constraints(absent, lambda x: sharding.constrain(x, "batch"), jnp.ones(6)) == []


def test_the_axis_of_prompts_has_no_constraint(absent):
    over_prompts = jax.vmap(lambda x: sharding.constrain_features(x, None), in_axes=1, out_axes=1)
    (spec,) = constraints(absent, over_prompts, jnp.ones((8, 3, 5, 6)))
    assert spec[0] == ("data", "fsdp")
    assert spec[1] is PartitionSpec.UNCONSTRAINED


def test_a_parameter_is_gathered_over_fsdp_and_its_gradient_is_split(absent):
    def product(kernel):
        return sharding.gathered(kernel, "embed", "mlp").sum()

    specs = constraints(absent, jax.grad(product), jnp.ones((4, 6)))
    assert specs == [PartitionSpec(None, "tensor"), PartitionSpec("fsdp", "tensor")]

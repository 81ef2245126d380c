"""Loading in 8 bits: what reaches the device, and the numbers that the host rounds to."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models
from pid_jax.backends import int8
from pid_jax.backends.settings import BY_PLATFORM
from pid_jax.checkpoints import huggingface
from pid_jax.checkpoints.orbax import CONFIG, MODEL, RunCheckpoints
from pid_jax.inference.model import PidModel
from tests.helpers.tiny_families import VARIANTS
from tests.helpers.tiny_t5 import TINY
from tests.helpers.training_checkpoints import numbers


def saved(kind, path, config=TINY):
    """A model, and the checkpoint that `path` has of it then."""
    model = models.build(config)
    params = jax.tree.map(lambda leaf: leaf + 0.02, models.init_params(model, jax.random.key(1)))
    if kind == "huggingface":
        PidModel(model, params).save_pretrained(path)
    else:
        huggingface.save_config(path / MODEL, model.config, None)
        (path / CONFIG).write_text(json.dumps({"checkpoint": {"best_metric": "loss"}}))
        with RunCheckpoints(path, recent=1, best_metric="loss") as checkpoints:
            checkpoints.save(1, {"params": params}, numbers())
    return model, params


@pytest.mark.parametrize("dtype", ["float32", "auto"])
@pytest.mark.parametrize("joined", [False, True], ids=["separate", "joined"])
@pytest.mark.parametrize("kind", ["huggingface", "run"])
def test_a_device_never_has_the_floats_of_a_kernel(kind, joined, dtype, tmp_path, monkeypatch):
    saved(kind, tmp_path)
    if joined:
        monkeypatch.setitem(BY_PLATFORM, "cpu", BY_PLATFORM["tpu"])
    before = jax.live_arrays()
    known = {id(array) for array in before}
    put, alive = [], []
    original = jax.device_put

    def counted(tree, *arguments, **options):
        alive.append(sum(one.nbytes for one in jax.live_arrays() if id(one) not in known))
        put.extend(jax.tree.leaves(tree))
        return original(tree, *arguments, **options)

    monkeypatch.setattr(jax, "device_put", counted)
    for module in ("asarray", "array"):
        made = getattr(jnp, module)

        def checked(value, *arguments, made=made, **options):
            assert np.ndim(value) < 2
            return made(value, *arguments, **options)

        monkeypatch.setattr(jnp, module, checked)
    loaded = PidModel.from_pretrained(tmp_path, dtype=dtype, weights="int8")

    leaves = jax.tree.leaves(loaded.params)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert ("query_key_value" in str(jax.tree.structure(loaded.params))) == joined
    # Besides the parameters, one number shows where arrays are put.
    assert sum(leaf.nbytes for leaf in put) <= sum(leaf.nbytes for leaf in leaves) + 8
    assert max(alive) <= 8
    # The tables of relative position biases stay floats.
    wide = [leaf for leaf in put if leaf.dtype != jnp.int8 and leaf.ndim > 1]
    assert {leaf.size for leaf in wide} == {32 * TINY["num_heads"]}


@pytest.mark.parametrize("kind", ["huggingface", "run"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_loaded_numbers_are_those_that_jax_rounds_to(kind, platform, tmp_path, monkeypatch):
    model, params = saved(kind, tmp_path)
    monkeypatch.setitem(BY_PLATFORM, "cpu", BY_PLATFORM[platform])

    loaded = PidModel.from_pretrained(tmp_path, weights="int8").params

    expected = model.int8_params(params)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert [leaf.dtype for leaf in jax.tree.leaves(loaded)] == [
        leaf.dtype for leaf in jax.tree.leaves(expected)
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_family_is_loaded_with_the_same_numbers(name, tmp_path):
    model, params = saved("huggingface", tmp_path, VARIANTS[name])

    loaded = PidModel.from_pretrained(tmp_path, dtype="bfloat16", weights="int8")

    in_bfloat16 = models.build(model.config, jnp.bfloat16)
    expected = in_bfloat16.int8_params(params)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)


def test_numpy_and_jax_round_equally_between_two_integers():
    # The quotient of one of these weights is 28.5 or 28.500001, which has other integers.
    random = np.random.default_rng(5)
    kernel = random.normal(size=(3072, 768)) * random.lognormal(size=(1, 768))
    kernel = kernel.astype(np.float32)

    host = int8.quantize({"layer": {"kernel": kernel}})
    device = int8.quantize({"layer": {"kernel": jnp.asarray(kernel)}})

    jax.tree.map(np.testing.assert_array_equal, host, device)
    assert host["layer"]["kernel"][1686, 637] == 29  # as before the host rounded


def test_channels_of_almost_nothing_have_zeros():
    kernel = np.full((3, 2), 1e-44, np.float32)
    kernel[:, 1] = 1e-36
    for weights in (kernel, jnp.asarray(kernel)):
        module = int8.quantize({"layer": {"kernel": weights}})["layer"]

        np.testing.assert_array_equal(module["kernel"], np.zeros((3, 2)))
        np.testing.assert_array_equal(module["kernel_scale"], [1.0, 1.0])


def test_arrays_of_numpy_stay_on_the_host():
    model = models.build(TINY)
    params = jax.tree.map(np.asarray, models.init_params(model, jax.random.key(0)))

    leaves = jax.tree.leaves(model.int8_params(params))

    assert {type(leaf) for leaf in leaves} == {np.ndarray}

"""Training with rematerialisation has the loss and the gradients of training without it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.backends.settings import BY_PLATFORM
from pid_jax.data.batching import Batch
from pid_jax.models import rematerialisation
from tests.helpers.tiny_families import DISTINCT, VARIANTS

RANDOM = np.random.default_rng(0)


def tokens(*shape):
    return jnp.asarray(RANDOM.integers(3, 96, shape), jnp.int32), jnp.ones(shape, bool)


BATCH = Batch(*tokens(2, 11), *tokens(2, 3, 2), *tokens(2, 3, 4))


def loss_and_gradients(config, remat):
    model = models.build(config, remat=remat)
    params = models.init_params(models.build(config), jax.random.key(0))

    def loss(params):
        return prompt_in_decoder.loss(model, params, BATCH, dropout_key=jax.random.key(1))[0]

    return loss, params


def assert_equal_training(config, remat):
    config = {**config, "dropout_rate": 0.1, "dropout": 0.1}
    loss, params = loss_and_gradients(config, "none")
    expected = jax.jit(jax.value_and_grad(loss))(params)
    loss, params = loss_and_gradients(config, remat)
    run = jax.jit(jax.value_and_grad(loss))
    assert "optimization_barrier" in run.lower(params).as_text()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, run(params), expected)


@pytest.mark.parametrize("variant", DISTINCT)
def test_every_family_trains_alike_with_full_rematerialisation(variant):
    assert_equal_training(VARIANTS[variant], "full")


@pytest.mark.parametrize("remat", ["dots", "dots_with_no_batch_dims"])
def test_every_policy_trains_alike(remat):
    assert_equal_training(VARIANTS["t5"], remat)


@pytest.mark.parametrize("variant", ["t5", "bart", "t5gemma", "t5gemma2"])
def test_a_feed_forward_that_stores_only_products_trains_alike(variant, monkeypatch):
    config = {**VARIANTS[variant], "dropout_rate": 0.1, "dropout": 0.1, "activation_dropout": 0.1}
    loss, params = loss_and_gradients(config, "none")
    expected = jax.jit(jax.value_and_grad(loss))(params)
    plain = dataclasses.replace(BY_PLATFORM["cpu"], recomputes_elementwise=True)
    monkeypatch.setitem(BY_PLATFORM, "cpu", plain)
    loss, params = loss_and_gradients(config, "none")
    run = jax.jit(jax.value_and_grad(loss))
    assert "optimization_barrier" in run.lower(params).as_text()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, run(params), expected)


def test_policies_have_the_names_of_jax():
    for name in rematerialisation.NAMES:
        if name.endswith("_saveable"):
            assert rematerialisation.POLICIES[name] is getattr(jax.checkpoint_policies, name)


def residual_sizes(remat):
    loss, params = loss_and_gradients(VARIANTS["t5"], remat)
    _, pull_back = jax.eval_shape(lambda params: jax.vjp(loss, params), params)
    return sum(leaf.size for leaf in jax.tree.leaves(pull_back))


def test_policies_store_fewer_numbers_the_less_they_name():
    sizes = [residual_sizes(name) for name in ("none", "dots", "dots_with_no_batch_dims", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4

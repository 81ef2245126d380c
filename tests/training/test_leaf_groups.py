"""Against the same transformations of optax, leaf by leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pid_jax.training import config as configuration
from pid_jax.training import leaf_groups, optimizer

RANDOM = np.random.default_rng(0)
SHAPES = {
    "first": {"scale": (8,), "kernel": (128, 130), "bias": (4, 3)},
    "second": {"scale": (8,), "kernel": (128, 130), "bias": (4, 3), "other": (8,)},
    "table": (700, 130),
}


def draw(scale=1.0):
    return jax.tree.map(
        lambda shape: jnp.asarray(RANDOM.normal(size=shape) * scale, jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-7)
TRANSFORMATIONS = {
    "adam": optax.scale_by_adam(),
    "adafactor": optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_groups_have_the_updates_and_the_state_of_single_parameters(name):
    one_by_one = TRANSFORMATIONS[name]
    grouped = leaf_groups.in_groups(one_by_one)
    params = draw()
    expected_state, state = one_by_one.init(params), grouped.init(params)
    for _ in range(3):
        gradients = draw()
        expected, expected_state = one_by_one.update(gradients, expected_state, params)
        updates, state = jax.jit(grouped.update)(gradients, state, params)
        jax.tree.map(close, updates, expected)
        jax.tree.map(close, state, expected_state)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_optimizers_have_the_updates_and_the_state_of_a_chain_of_optax(name, scaled, clip):
    config = configuration.default()
    config.optimizer.update(
        name=name, scale_by_parameter=scaled, clip_norm=clip, weight_decay=0.1, warmup_steps=0
    )
    precondition = optax.scale_by_adam(0.9, 0.999, 1e-8)
    if name == "adafactor":
        precondition = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms() if scaled else optax.identity(),
        )
    theirs = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        precondition,
        optax.add_decayed_weights(0.1, mask=optimizer.matrices),
        optax.scale_by_learning_rate(optimizer.learning_rate(config)),
    )
    ours, params = optimizer.build(config), draw()
    state, expected_state = ours.init(params), theirs.init(params)
    for _ in range(2):
        gradients = draw(0.01)
        updates, state = ours.update(gradients, state, params)
        expected, expected_state = theirs.update(gradients, expected_state, params)
        jax.tree.map(close, updates, expected)
        jax.tree.map(close, state, expected_state)


def test_the_norm_is_that_of_all_numbers():
    tree = draw()
    numbers = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)
    norm = leaf_groups.global_norm(tree)
    np.testing.assert_allclose(norm, np.sqrt(np.sum(numbers**2)), rtol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_updates_are_scaled_by_the_root_mean_square_of_the_parameter(size):
    params = {"w": jnp.full((3, 2), size)}
    scaled, _ = leaf_groups.scale_by_param_block_rms().update({"w": jnp.ones((3, 2))}, (), params)
    np.testing.assert_allclose(scaled["w"], max(size, 1e-3), rtol=1e-6)


def reductions(config):
    update, params = optimizer.build(config), {str(i): jnp.ones(8) for i in range(20)}
    lowered = jax.jit(update.update).lower(params, update.init(params), params)
    return lowered.as_text().count("stablehlo.reduce(")


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_twenty_norm_scales_have_as_few_sums_as_one(name):
    config = configuration.default()
    config.optimizer.name = name
    assert reductions(config) <= 4

"""Against torch's AdamW, transformers' Adafactor, and rates worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from pid_jax.errors import UserError
from pid_jax.training import config as configuration
from pid_jax.training import optimizer


def options(**optimizer_options):
    config = configuration.default()
    config.optimizer.update(optimizer_options)
    config.train.steps = optimizer_options.pop("steps", 100)
    return config


@pytest.mark.parametrize(
    ("schedule", "final", "expected"),
    [
        # 10 steps of warm-up to 2.0, 110 in all: update 1, 5, 10, 60 (half-way down), 110.
        ("constant", 0.0, [0.2, 1.0, 2.0, 2.0, 2.0]),
        ("linear", 0.0, [0.2, 1.0, 2.0, 1.0, 0.0]),
        ("linear", 0.5, [0.2, 1.0, 2.0, 1.5, 1.0]),
        ("cosine", 0.0, [0.2, 1.0, 2.0, 1.0, 0.0]),
        ("cosine", 0.1, [0.2, 1.0, 2.0, 1.1, 0.2]),
        ("rsqrt", 0.0, [0.2, 1.0, 2.0, 2.0 * (10 / 60) ** 0.5, 2.0 * (10 / 110) ** 0.5]),
    ],
)
def test_learning_rates_are_those_worked_out_by_hand(schedule, final, expected):
    config = options(learning_rate=2.0, warmup_steps=10, schedule=schedule, final_fraction=final)
    config.train.steps = 110
    rate = optimizer.learning_rate(config)
    # The rate of update u is asked for when u - 1 updates are done.
    actual = [float(rate(jnp.asarray(update - 1))) for update in (1, 5, 10, 60, 110)]
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_without_warm_up_the_first_rate_is_the_peak():
    config = options(learning_rate=3.0, warmup_steps=0, schedule="constant")
    assert float(optimizer.learning_rate(config)(jnp.asarray(0))) == 3.0


def test_a_warm_up_longer_than_the_run_is_refused():
    config = options(warmup_steps=100, schedule="linear")
    with pytest.raises(UserError, match="warmup_steps is 100"):
        optimizer.learning_rate(config)


def follow(config, params, gradients):
    """The parameters after one update for each of `gradients`."""
    update = optimizer.build(config)
    state = update.init(params)
    for gradient in gradients:
        changes, state = update.update(gradient, state, params)
        params = optax.apply_updates(params, changes)
    return params


def problem(shape, steps=5):
    random = np.random.default_rng(0)
    draw = lambda: random.normal(size=shape).astype(np.float32)  # noqa: E731
    return draw(), [draw() for _ in range(steps)]


def test_adamw_equals_torch():
    start, gradients = problem((3, 4))
    config = options(
        learning_rate=0.1,
        warmup_steps=0,
        schedule="constant",
        weight_decay=0.3,
        clip_norm=1.5,
        b1=0.8,
        b2=0.95,
        epsilon=1e-6,
    )
    ours = follow(
        config, {"w": jnp.asarray(start)}, [{"w": jnp.asarray(gradient)} for gradient in gradients]
    )
    weight = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([weight], 1.5)
        theirs.step()
    np.testing.assert_allclose(ours["w"], weight.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [True, False])
def test_adafactor_equals_transformers(scale):
    start, gradients = problem((128, 130))
    config = options(
        name="adafactor",
        learning_rate=0.1,
        warmup_steps=0,
        schedule="constant",
        clip_norm=0.0,
        scale_by_parameter=scale,
    )
    ours = follow(
        config, {"w": jnp.asarray(start)}, [{"w": jnp.asarray(gradient)} for gradient in gradients]
    )
    weight = torch.nn.Parameter(torch.tensor(start))
    theirs = transformers.Adafactor(
        [weight], lr=0.1, scale_parameter=scale, relative_step=False, warmup_init=False
    )
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        theirs.step()
    np.testing.assert_allclose(ours["w"], weight.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weight_decay_spares_what_is_not_a_matrix(name):
    params = {"kernel": jnp.ones((4, 4)), "scale": jnp.ones(4), "sinusoids": jnp.ones((4, 4))}
    nothing = jax.tree.map(jnp.zeros_like, params)
    config = options(
        name=name, learning_rate=0.5, warmup_steps=0, schedule="constant", weight_decay=0.1
    )
    after = follow(config, params, [nothing])
    np.testing.assert_allclose(after["kernel"], 1 - 0.5 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(after["scale"], 1.0)
    np.testing.assert_array_equal(after["sinusoids"], 1.0)

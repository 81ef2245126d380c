"""Against torch's AdamW, transformers' Adafactor, and rates worked out by hand."""

import functools
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from ml_collections import ConfigDict

from pid_jax.checkpoints.orbax import RunCheckpoints
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.training import config as configuration
from pid_jax.training import loop, optimizer
from tests.helpers import tiny_config
from tests.helpers.training_checkpoints import numbers


def options(**optimizer_options):
    config = configuration.default()
    config.optimizer.args = ConfigDict(optimizer_options.pop("args", {}))
    config.optimizer.update(optimizer_options)
    config.train.steps = 100
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
    # The argument is the number of updates before.
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


def test_an_argument_of_adamw_leaves_the_rest_as_it_is():
    start, gradients = problem((3, 4))
    params = {"w": jnp.asarray(start)}
    gradients = [{"w": jnp.asarray(gradient)} for gradient in gradients]
    shared = {"learning_rate": 0.1, "warmup_steps": 2, "weight_decay": 0.3, "b2": 0.95}
    plain = follow(options(**shared), params, gradients)
    as_before = follow(options(**shared, args={"eps_root": 0.0}), params, gradients)
    nesterov = follow(options(**shared, args={"nesterov": True}), params, gradients)
    np.testing.assert_allclose(as_before["w"], plain["w"], rtol=1e-5)
    assert not np.allclose(nesterov["w"], plain["w"], rtol=1e-3)


@pytest.mark.parametrize("name", ["sgd", "lion", "lamb", "sm3", "contrib.ademamix"])
def test_weight_decay_means_the_same_for_every_optimizer(name):
    """A matrix without a gradient shrinks by learning rate times decay, nothing else does."""
    params = {"kernel": jnp.ones((4, 4)), "scale": jnp.ones(4)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    config = options(
        name=name, learning_rate=0.5, warmup_steps=0, schedule="constant", weight_decay=0.1
    )
    after = follow(config, params, [nothing])
    np.testing.assert_allclose(after["kernel"], 1 - 0.5 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(after["scale"], 1.0)


def test_sgd_with_momentum_follows_the_schedule():
    """Warm-up of two steps to 1.0, momentum 0.5, gradient 1: worked out by hand."""
    shared = {"learning_rate": 1.0, "warmup_steps": 2, "schedule": "constant", "clip_norm": 0.0}
    config = options(name="sgd", args={"momentum": 0.5}, **shared)
    after = follow(config, {"w": jnp.zeros(1)}, [{"w": jnp.ones(1)}] * 3)
    # Rates 0.5, 1, 1 times momenta 1, 1.5, 1.75.
    np.testing.assert_allclose(after["w"], [-(0.5 * 1 + 1.5 + 1.75)], rtol=1e-6)


def test_an_optimizer_without_a_schedule_of_its_own_follows_the_runs():
    """sm3 of the first gradient is its sign, times the learning rate: 0.25 of 2.0 in warm-up."""
    config = options(
        name="sm3", learning_rate=2.0, warmup_steps=4, schedule="constant", args={"momentum": 0.0}
    )
    after = follow(config, {"w": jnp.zeros((2, 2))}, [{"w": jnp.ones((2, 2))}])
    np.testing.assert_allclose(after["w"], -0.5, rtol=1e-3)


def test_every_name_makes_an_optimizer():
    params = {"kernel": jnp.ones((4, 4)), "scale": jnp.ones(4)}
    names = optimizer.names()
    assert {"adamw", "adafactor", "lion", "sgd", "lamb", "contrib.muon"} <= set(names)
    for name in names:
        update = optimizer.build(options(name=name, warmup_steps=1))
        update.update(params, update.init(params), params)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("adamm", {}, r"config\.optimizer\.name is 'adamm': choose from .*adamw, .*lion, "),
        ("scale_by_adam", {}, "choose from"),
        ("lbfgs", {}, "choose from"),
        ("lion", {"beta1": 0.9}, r"config\.optimizer\.args\.beta1: optax\.lion .* It has b1, b2,"),
        ("sgd", {"learning_rate": 1.0}, r"args\.learning_rate: optax\.sgd has no such argument"),
        ("noisy_sgd", {"key": 1, "seed": 1}, r"optax\.noisy_sgd does not take .*key=1, seed=1"),
    ],
)
def test_mistakes_are_named_with_what_there_is(name, args, message):
    with pytest.raises(UserError, match=message):
        optimizer.build(options(name=name, args=args, warmup_steps=1))


def run(workdir, given=None, args=(), overrides=(), **optimizer_options):
    config = configuration.with_overrides(tiny_config.get_config(), overrides, "the test")
    config.optimizer.args = ConfigDict(dict(args))
    config.optimizer.update(
        {"learning_rate": 1e-3, "warmup_steps": 0, "schedule": "constant"} | optimizer_options
    )
    config.train.steps = 2
    config.checkpoint.every_steps = 1
    config.evaluation.documents = 2
    loop.train(config, workdir, optimizer=given)
    return [
        line
        for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        if line["split"] == "train"
    ]


def resumed_after_one(workdir, copy):
    """The run as it was when its first step was saved."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "2")
    return copy


def assert_resumes(tmp_path, given=lambda: None, **optimizer_options):
    """Two steps without a stop and with one between them end bit for bit alike."""
    whole = run(tmp_path / "whole", given(), **optimizer_options)
    copy = resumed_after_one(tmp_path / "whole", tmp_path / "resumed")
    assert run(copy, given(), **optimizer_options) == whole
    assert [line["step"] for line in whole] == [1, 2]
    one, other = (PidModel.from_pretrained(tmp_path / name) for name in ("whole", "resumed"))
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    return whole


def test_an_optimizer_of_optax_trains_and_resumes_exactly(tmp_path):
    # Muon has a state for matrices and another for the rest.
    lines = assert_resumes(tmp_path, name="contrib.muon", weight_decay=0.1)
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3, 1e-3])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("lion", {}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("lamb", {}),
        ("adafactor", {"momentum": 0.9}),
        ("sm3", {}),
        ("contrib.muon", {}),
    ],
)
def test_the_state_of_an_optimizer_comes_back_from_a_checkpoint(tmp_path, name, args):
    params = {"kernel": jnp.ones((4, 4)), "scale": jnp.ones(4)}
    update = optimizer.build(options(name=name, args=args, warmup_steps=1, weight_decay=0.1))
    _, opt_state = update.update(params, update.init(params), params)
    state = {"opt_state": opt_state}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state
    )
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        checkpoints.save(1, state, numbers())
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        restored = checkpoints.restore(1, abstract, numbers())
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def of_python(rate=1e-3):
    return optax.chain(optax.clip(0.5), optax.adabelief(rate))


def test_an_optimizer_from_python_replaces_the_configured_one(tmp_path, caplog):
    lines = assert_resumes(tmp_path, given=of_python)
    assert all("learning_rate" not in line for line in lines)

    # Another one is refused where its state differs, and named where it does not.
    copy = resumed_after_one(tmp_path / "whole", tmp_path / "other")
    with pytest.raises(UserError, match="another optimizer, whose state does not fit"):
        run(copy, optax.sgd(1e-3))
    with pytest.raises(UserError, match=r'optimizer\.name was "train\(optimizer=\.\.\.\)", is "ad'):
        run(copy)
    with caplog.at_level(logging.WARNING, "pid_jax"):
        run(copy, of_python(2e-3))
    assert "the update of the optimizer was" in caplog.text


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """The workdir of two steps with the usual optimizer, and their metrics."""
    workdir = tmp_path_factory.mktemp("configured") / "whole"
    return workdir, run(workdir)


def test_a_configured_run_does_not_go_on_with_an_optimizer_from_python(configured, tmp_path):
    copy = resumed_after_one(configured[0], tmp_path / "copy")
    with pytest.raises(UserError, match=r'optimizer\.name was "adamw", is "train\(optimizer'):
        run(copy, of_python())
    with pytest.raises(UserError, match="GradientTransformation, not float"):
        run(copy, 1e-3)


def test_a_run_of_an_earlier_version_goes_on_without_a_word(configured, tmp_path, caplog):
    workdir, whole = configured
    copy = resumed_after_one(workdir, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    del config["optimizer"]["args"], config["model"]["scan_layers"], config["train"]["remat"]
    (copy / "config.json").write_text(json.dumps(config))
    data = json.loads((copy / "data.json").read_text())
    del data["optimizer"]
    (copy / "data.json").write_text(json.dumps(data))
    with caplog.at_level(logging.WARNING, "pid_jax"):
        assert run(copy) == whole
    assert "the run continues with" not in caplog.text


def test_a_run_goes_on_with_scanned_layers(tmp_path, caplog):
    deep = [
        "--config.train.dropout_rate=0.0",
        "--config.model.architecture.num_layers=3",
        "--config.model.architecture.num_decoder_layers=3",
    ]
    whole = run(tmp_path / "whole", overrides=deep)
    copy = resumed_after_one(tmp_path / "whole", tmp_path / "scanned")
    with caplog.at_level(logging.WARNING, "pid_jax"):
        scanned = run(copy, overrides=[*deep, "--config.model.scan_layers=True"])
    assert "config.model.scan_layers was false, is true: the run continues with" in caplog.text
    assert [line["loss"] for line in scanned] == pytest.approx([line["loss"] for line in whole])
    one, other = (PidModel.from_pretrained(workdir) for workdir in (tmp_path / "whole", copy))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, other.params, one.params)
    other.save_pretrained(tmp_path / "exported")
    exported = PidModel.from_pretrained(tmp_path / "exported")
    jax.tree.map(np.testing.assert_array_equal, exported.params, other.params)

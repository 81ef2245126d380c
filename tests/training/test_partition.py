"""Frozen parameters and the average of parameters in a training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from pid_jax import device_memory, models, sharding
from pid_jax.compile_ahead import architectures
from pid_jax.errors import UserError
from pid_jax.models.lora import is_adapter
from pid_jax.models.partition import is_matrix, joined
from pid_jax.training import assembly, compiled, memory, optimizer, step, trained_part
from pid_jax.training import config as configuration
from tests.helpers import adapted
from tests.helpers.tiny_families import VARIANTS
from tests.helpers.tiny_t5 import TINY

SMALL = {**TINY, "vocab_size": 96}


def config_of(**changes):
    config = configuration.default()
    config.optimizer.warmup_steps = 0
    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 0.1
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    configuration.check(config)
    return config


def run(config, architecture=SMALL, steps=3):
    """The states of a few steps, the first one included, and their reports."""
    model = assembly.build_model(config, models.config_from_hf(architecture))
    update = optimizer.build(config)
    train_step = jax.jit(
        functools.partial(
            step.train_step,
            model=model,
            optimizer=update,
            schedule=None,
            label_smoothing=0.0,
            z_loss=0.0,
            ema_decay=config.train.ema_decay,
        )
    )
    params = models.init_params(model, jax.random.key(0))
    states = [step.initial_state(params, update, 0, **trained_part.parts_of_state(config, model))]
    reports = []
    batch = jax.device_put(adapted.batch(model))
    for _ in range(steps):
        state, report = train_step(states[-1], batch)
        states.append(state)
        reports.append(report)
    return states, reports


FREEZE = "shared|^encoder/"


def test_frozen_parameters_do_not_change_and_have_no_optimizer_state():
    first, *_, last = run(config_of(train__freeze=FREEZE))[0]
    frozen, trained = flatten_dict(last.frozen), flatten_dict(last.params)
    assert {path[0] for path in frozen} == {"shared", "encoder"}
    assert {path[0] for path in trained} == {"decoder"}
    jax.tree.map(np.testing.assert_array_equal, last.frozen, first.frozen)
    assert all(np.any(leaf != flatten_dict(first.params)[path]) for path, leaf in trained.items())
    moments = [leaf.shape for leaf in jax.tree.leaves(last.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in trained.values()])


def test_trained_parameters_have_the_gradients_of_a_run_without_frozen_ones():
    """Of the first step: SGD's change is the gradient times the learning rate."""
    plain = {"optimizer__name": "sgd", "optimizer__clip_norm": 0.0, "optimizer__weight_decay": 0.0}
    some, _ = run(config_of(train__freeze=FREEZE, **plain), steps=1)
    every, _ = run(config_of(**plain), steps=1)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6),
        some[1].params["decoder"],
        every[1].params["decoder"],
    )


def test_an_adapter_trains_alone_and_lowers_the_loss():
    states, reports = run(config_of(adapter__rank=4, optimizer__learning_rate=0.1), steps=12)
    assert reports[-1]["loss"] < 0.9 * reports[0]["loss"]
    assert all(map(is_adapter, flatten_dict(states[-1].params)))
    jax.tree.map(np.testing.assert_array_equal, states[-1].frozen, states[0].frozen)


def test_the_average_is_that_of_its_formula():
    """a_0 = p_0 and a_t = 0.75 a_(t-1) + 0.25 p_t, in NumPy's float64."""
    states, _ = run(config_of(train__ema_decay=0.75))
    expected = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), states[0].params)
    for state in states[1:]:
        expected = jax.tree.map(
            lambda mean, new: 0.75 * mean + 0.25 * np.asarray(new), expected, state.params
        )
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, state.ema, expected)
        jax.tree.map(np.testing.assert_array_equal, state.evaluated, state.ema)
        assert state.saved["ema"] is state.ema
    without, _ = run(config_of(), steps=3)
    jax.tree.map(np.testing.assert_array_equal, without[-1].params, states[-1].params)
    assert without[-1].saved.keys() == {"step", "params", "opt_state", "key"}


def test_the_average_of_an_adapter_is_joined_with_the_frozen_parameters():
    states, _ = run(config_of(adapter__rank=2, train__ema_decay=0.5))
    evaluated = flatten_dict(states[-1].evaluated)
    assert evaluated.keys() == flatten_dict(joined(states[-1].params, states[-1].frozen)).keys()
    for path, leaf in flatten_dict(states[-1].ema).items():
        assert evaluated[path] is leaf
    assert "frozen" not in states[-1].saved


@pytest.mark.parametrize("name", ["t5", "bart", "t5gemma2"])
def test_frozen_matrices_in_bfloat16_train_alike_with_activations_in_bfloat16(name):
    halves = {"adapter__rank": 2, "model__dtype": "bfloat16", "model__frozen_dtype": "bfloat16"}
    half, of_half = run(config_of(**halves), VARIANTS[name])
    whole, of_whole = run(config_of(**halves | {"model__frozen_dtype": "float32"}), VARIANTS[name])
    assert [float(one["loss"]) for one in of_half] == [float(one["loss"]) for one in of_whole]
    jax.tree.map(np.testing.assert_array_equal, half[-1].params, whole[-1].params)
    for path, leaf in flatten_dict(half[-1].frozen).items():
        kernel_or_embedding = path[-1] in ("kernel", "embedding") and "bias" not in str(path)
        assert leaf.dtype == (jnp.bfloat16 if kernel_or_embedding else jnp.float32), path


def test_matrices_are_kernels_and_embeddings():
    flat = flatten_dict(models.abstract_params(models.build(VARIANTS["bart"])))
    others = {path[-1] for path, leaf in flat.items() if not is_matrix(path, leaf.ndim)}
    assert others == {"scale", "bias", "final_logits_bias"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train__freeze": "nothing"}, "config.train.freeze is 'nothing': it matches no parameter"),
        ({"train__freeze": "."}, "no parameter would be trained"),
        (
            {"adapter__rank": 2, "adapter__targets": "scale"},
            "config.adapter.targets is 'scale': it matches no kernel",
        ),
        ({"train__freeze": "("}, "config.train.freeze is '(': not a regular expression"),
        ({"train__ema_decay": 1.0}, "config.train.ema_decay is 1.0"),
        ({"model__frozen_dtype": "int8"}, "config.model.frozen_dtype is 'int8'"),
        ({"adapter__rank": -1}, "config.adapter.rank is -1"),
        (
            {"adapter__rank": 1, "model__init": "x", "model__partial_init": True},
            "config.adapter.rank needs config.model.partial_init=False",
        ),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused_by_their_key(changes, problem):
    model = models.config_from_hf(VARIANTS["t5"])

    def partition():
        config = config_of(**changes)
        return trained_part.partition_of(config, assembly.build_model(config, model))

    with pytest.raises(UserError) as error:
        partition()
    assert problem in str(error.value)


def test_an_adapter_can_be_frozen_in_part():
    config = config_of(adapter__rank=2, train__freeze="^encoder/")
    states, _ = run(config, steps=1)
    assert {path[0] for path in flatten_dict(states[0].params)} == {"decoder"}


def test_the_state_of_an_adapter_of_t5_3b_takes_the_bytes_of_its_formula():
    """Counted by shape: two bytes for a frozen matrix, twelve for an entry of the adapter."""
    config = config_of(
        adapter__rank=16, model__frozen_dtype="bfloat16", train__ema_decay=0.99, model__dtype="auto"
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    model = assembly.build_model(config, models.config_from_hf(architectures.get("t5-3b")))
    update = optimizer.build(config)
    parts = trained_part.parts_of_state(config, model)
    shardings = step.state_shardings(mesh, model, update, **parts)
    state = compiled.abstract_state(model, update, shardings, **parts)
    # Queries and values of 24 + 2 * 24 attentions, 1,024 features in and 32 heads of 128 out.
    adapter = 2 * 72 * 16 * (1024 + 32 * 128)
    attention, forward = 4 * 1024 * 4096, 2 * 1024 * 16384
    matrices = 72 * attention + 48 * forward + 32128 * 1024
    norms, biases = (2 * 24 + 3 * 24 + 2) * 1024, 2 * 32 * 32
    parameters, others = memory.state_bytes(state)
    assert parameters == 2 * matrices + 4 * (norms + biases) + 4 * adapter
    assert others == (8 + 4) * adapter + 2 * 4
    assert device_memory.bytes_per_device(state.evaluated) == parameters

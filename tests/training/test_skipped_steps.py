"""Steps that are not finite: skipped on the device, counted in metrics.jsonl."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import prompt_in_decoder
from pid_jax.training import loop, step
from pid_jax.training.skipped_steps import SkippedSteps
from tests.helpers import tiny_config
from tests.training.test_step import batch_of, make_step

POISONED = (3, 4, 8)
"""Steps whose gradient is NaN."""


def times(factor):
    """The loss of a step times a number, or a function of its dropout key."""
    original = prompt_in_decoder.loss

    def loss(model, params, batch, *, dropout_key, **options):
        value, metrics = original(model, params, batch, dropout_key=dropout_key, **options)
        return value * (factor(dropout_key) if callable(factor) else factor), metrics

    return loss


def test_more_in_a_row_than_allowed_are_too_many():
    skipped = SkippedSteps(2)
    for one in (True, True, False, True, True):
        skipped.add(skipped=one)
        assert not skipped.too_many
    skipped.add(skipped=True)
    assert skipped.too_many
    assert skipped.metrics == {"skipped_steps": 5}


def test_without_a_limit_the_first_one_is_too_many_and_nothing_is_counted():
    skipped = SkippedSteps(0)
    skipped.add(skipped=False)
    assert not skipped.too_many
    assert skipped.metrics == {}
    skipped.add(skipped=True)
    assert skipped.too_many


def test_a_resumed_run_counts_from_its_lines():
    lines = [
        {"step": number, "split": "train", "skipped_steps": count}
        for number, count in enumerate((0, 1, 1, 2, 3), start=1)
    ]
    skipped = SkippedSteps(2, [*lines, {"step": 5, "split": "validation", "loss": 1.0}])
    assert (skipped.total, skipped.too_many) == (3, False)
    skipped.add(skipped=True)  # the third in a row
    assert skipped.too_many


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_skipped_step_changes_the_number_of_the_step_alone(tiny_model, monkeypatch, name):
    batch = batch_of([[[30, 31, 1], [32, 1]], [[33, 34, 35, 1]]])
    run, first = make_step(tiny_model.model, tiny_model.params, name=name, skip_nonfinite=True)
    plain, _ = make_step(tiny_model.model, tiny_model.params, name=name)
    state, metrics = run(first, batch)
    expected, of_plain = plain(first, batch)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    assert float(metrics.pop("skipped")) == 0.0
    jax.tree.map(close, metrics, of_plain)
    # The learning rate is 0.05, and rounding decides the sign of the smallest gradients.
    jax.tree.map(functools.partial(close, atol=1e-3), state.params, expected.params)

    monkeypatch.setattr(step.prompt_in_decoder, "loss", times(jnp.nan))
    poisoned, _ = make_step(tiny_model.model, tiny_model.params, name=name, skip_nonfinite=True)
    after, metrics = poisoned(state, batch)
    assert (float(metrics["skipped"]), float(metrics["finite"])) == (1.0, 1.0)
    assert not np.isfinite(metrics["gradient_norm"])
    jax.tree.map(np.testing.assert_array_equal, after, state.replace(step=state.step + 1))

    # The learning rate is that of the next update, which the optimizer counts.
    _, metrics = run(state.replace(step=state.step + 7), batch)
    _, expected = plain(state, batch)
    assert float(metrics["learning_rate"]) == float(expected["learning_rate"])


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_skipped_step_leaves_the_average_of_the_parameters(
    tiny_model, monkeypatch, micro_batches
):
    batch = batch_of([[[30, 31, 1], [32, 1]], [[33, 34, 35, 1]]])
    options = {"skip_nonfinite": True, "ema_decay": 0.75}
    run, first = make_step(tiny_model.model, tiny_model.params, micro_batches, **options)
    state, _ = run(first, batch)
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, first.params, state.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-7), state.ema, expected)
    monkeypatch.setattr(step.prompt_in_decoder, "loss", times(jnp.nan))
    poisoned, _ = make_step(tiny_model.model, tiny_model.params, micro_batches, **options)
    after, _ = poisoned(state, batch)
    jax.tree.map(np.testing.assert_array_equal, after, state.replace(step=state.step + 1))


def config_of(max_nonfinite_steps, steps=10):
    config = tiny_config.get_config()
    config.train.update(steps=steps, max_nonfinite_steps=max_nonfinite_steps)
    config.evaluation.every_steps = config.checkpoint.every_steps = 5
    config.optimizer.schedule = "constant"
    return config


@pytest.fixture
def poisoned(monkeypatch):
    """The gradients of the steps `POISONED` are NaN: they are known by their dropout keys."""
    key = jax.random.key_data(jax.random.key(tiny_config.get_config().seed))
    keys = [
        jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key), number - 1))
        for number in POISONED
    ]

    def factor(dropout_key):
        of_step = jax.random.key_data(dropout_key)
        hit = jnp.any(jnp.all(jnp.stack(keys) == of_step, axis=-1))
        return jnp.where(hit, jnp.nan, 1.0)

    monkeypatch.setattr(step.prompt_in_decoder, "loss", times(factor))


def lines(workdir, split="train"):
    text = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["split"] == split]


def test_a_run_counts_skipped_steps_and_goes_on_after_a_resume(tmp_path, poisoned, caplog):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    loop.train(config_of(2), whole)
    assert [line["skipped_steps"] for line in lines(whole)] == [0, 0, 1, 2, 2, 2, 2, 3, 3, 3]
    norms = {line["step"]: line["gradient_norm"] for line in lines(whole)}
    assert [number for number, norm in norms.items() if norm is None] == list(POISONED)
    assert "step 3 is skipped: the loss is" in caplog.text

    for steps in (4, 10):  # the first leg ends with a skipped step
        loop.train(config_of(2, steps), resumed)
    assert lines(resumed) == lines(whole)


def test_more_skipped_steps_in_a_row_than_allowed_end_the_run(tmp_path, poisoned):
    with pytest.raises(loop.Diverged, match=r"^step 4: the loss is"):
        loop.train(config_of(1), tmp_path)
    assert [line["skipped_steps"] for line in lines(tmp_path)] == [0, 0, 1]

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pid_jax import models, prompt_in_decoder, sharding
from pid_jax.data.batching import collate, shape_of
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.training import config as configuration
from pid_jax.training import optimizer, step

DOCUMENTS = [[5, 6, 7, 8, 9, 1], [10, 11, 1]]
PROMPTS = [[[20, 21], [22]], [[20, 21]]]


def batch_of(targets):
    examples = [
        TokenizedExample(str(i), *example)
        for i, example in enumerate(zip(DOCUMENTS, PROMPTS, targets, strict=True))
    ]
    shape = shape_of(examples)
    return jax.device_put(collate(examples, shape, pad_token_id=0, decoder_start_token_id=0))


def make_step(
    model, params, micro_batches=1, *, skip_nonfinite=False, ema_decay=0.0, **optimizer_options
):
    """A jitted step, and the state before the first."""
    config = configuration.default()
    config.optimizer.args = ConfigDict(optimizer_options.pop("args", {}))
    config.optimizer.update(warmup_steps=0, **optimizer_options)
    update = optimizer.build(config)
    run = jax.jit(
        functools.partial(
            step.train_step,
            model=model,
            optimizer=update,
            schedule=optimizer.learning_rate(config),
            label_smoothing=0.0,
            z_loss=0.0,
            micro_batches=micro_batches,
            skip_nonfinite=skip_nonfinite,
            ema_decay=ema_decay,
        )
    )
    return run, step.initial_state(params, update, config.seed, averages=ema_decay > 0)


@pytest.fixture(scope="module")
def usual(tiny_model):
    return make_step(tiny_model.model, tiny_model.params, learning_rate=0.05)


@pytest.fixture
def batch():
    return batch_of([[[30, 31, 1], [32, 1]], [[33, 34, 35, 1]]])


def test_the_loss_of_a_batch_that_is_learned_falls(usual, batch):
    run, state = usual
    losses = []
    for _ in range(30):
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 30


def test_a_step_is_a_function_of_state_and_batch(usual, batch):
    run, state = usual
    first, second = run(state, batch), run(state, batch)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_adafactor_of_scanned_layers_is_that_of_unrolled_ones(tiny_model, batch):
    """It factors, clips and scales by layer, because no parameter of the state is stacked."""
    deep = {"dropout_rate": 0.0, "num_layers": 3, "num_decoder_layers": 3}
    config = {**tiny_model.config.to_hf(), **deep}
    params = models.init_params(models.build(config), jax.random.key(0))

    def two_steps(scan_layers):
        model = models.build(config, scan_layers=scan_layers)
        factored = {"min_dim_size_to_factor": 4}
        run, state = make_step(model, params, name="adafactor", args=factored)
        for _ in range(2):
            state, metrics = run(state, batch)
        return state.params, state.opt_state, metrics

    unrolled, scanned = two_steps(False), two_steps(True)
    assert jax.tree.structure(scanned) == jax.tree.structure(unrolled)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), scanned, unrolled
    )


def test_dropout_differs_from_step_to_step(usual, batch):
    run, state = usual
    _, first = run(state, batch)
    _, second = run(state.replace(step=state.step + 1), batch)
    assert float(first["loss"]) != float(second["loss"])


def test_without_dropout_the_metrics_are_those_of_the_evaluation(tiny_model, batch):
    still = models.build({**tiny_model.config.to_hf(), "dropout_rate": 0.0})
    run, state = make_step(still, tiny_model.params)
    _, metrics = run(state, batch)
    figures = step.evaluation_step(tiny_model.params, batch, model=tiny_model.model)
    np.testing.assert_allclose(metrics["loss"], figures.loss / figures.target_tokens, rtol=1e-5)
    assert float(metrics["target_tokens"]) == float(figures.target_tokens) == 9


def test_micro_batches_sum_to_the_gradient_of_the_batch(tiny_model, batch):
    """The parts have 5 and 4 target tokens."""
    still = models.build({**tiny_model.config.to_hf(), "dropout_rate": 0.0})
    options = {"name": "sgd", "learning_rate": 1.0, "clip_norm": 0.0, "schedule": "constant"}
    whole, parts = (make_step(still, tiny_model.params, count, **options) for count in (1, 2))
    expected, metrics = whole[0](whole[1], batch)
    state, of_parts = parts[0](parts[1], batch)
    for name, value in metrics.items():
        np.testing.assert_allclose(of_parts[name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6),
        state.params,
        expected.params,
    )
    assert float(metrics["gradient_norm"]) > 0.1


def test_each_micro_batch_has_a_dropout_key_of_its_own(tiny_model, batch):
    """Two parts with the same document."""
    one = jax.tree.map(lambda x: x[:1], batch)
    both = jax.tree.map(lambda x: jnp.concatenate([x, x]), one)
    run, state = make_step(tiny_model.model, tiny_model.params, micro_batches=2)
    _, metrics = run(state, both)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    losses = [
        float(prompt_in_decoder.loss(tiny_model.model, tiny_model.params, one, dropout_key=part)[0])
        for part in jax.random.split(key, 2)
    ]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


def test_what_is_not_finite_is_reported(usual, batch):
    run, state = usual
    assert float(run(state, batch)[1]["finite"]) == 1.0
    broken = state.replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))
    assert float(run(broken, batch)[1]["finite"]) == 0.0


def test_a_first_update_that_overflows_is_reported(tiny_model, batch):
    # The loss itself is still finite: it was computed before the update.
    run, state = make_step(
        tiny_model.model, tiny_model.params, learning_rate=3e38, weight_decay=100.0
    )
    _, metrics = run(state, batch)
    assert np.isfinite(metrics["loss"])
    assert float(metrics["finite"]) == 0.0


def test_an_evaluation_calls_right_what_greedy_decoding_yields(tiny_model):
    # Without the end token, every generation is three tokens; then it is cut there.
    decoded = tiny_model.generate(DOCUMENTS, PROMPTS, max_new_tokens=3, min_new_tokens=3)
    targets = [[generation.tokens for generation in row] for row in decoded]
    assert all(len(target) == 3 for row in targets for target in row)
    figures = step.evaluation_step(tiny_model.params, batch_of(targets), model=tiny_model.model)
    np.testing.assert_array_equal(figures.present, [[True, True], [True, False]])
    assert figures.correct[figures.present].all()

    targets[0][1][2] = (targets[0][1][2] + 1) % 64
    figures = step.evaluation_step(tiny_model.params, batch_of(targets), model=tiny_model.model)
    np.testing.assert_array_equal(figures.correct[figures.present], [True, False, True])


def test_an_evaluation_sums_the_scores_of_the_targets(tiny_model):
    targets = [[[30, 31, 1], [32, 1]], [[33, 34, 35, 1]]]
    scores = tiny_model.score(DOCUMENTS, PROMPTS, targets)
    figures = step.evaluation_step(tiny_model.params, batch_of(targets), model=tiny_model.model)
    np.testing.assert_allclose(figures.loss, -sum(map(sum, scores)), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_every_array_of_the_state_has_a_sharding(tiny_model, name):
    config = configuration.default()
    config.optimizer.name = name
    update = optimizer.build(config)
    shardings = step.state_shardings(sharding.make_mesh(), tiny_model.model, update)
    state = step.initial_state(tiny_model.params, update, 0)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)

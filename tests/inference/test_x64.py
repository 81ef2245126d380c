"""JAX_ENABLE_X64=1: every kind of decoding, scoring and a training step work as without it."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from pid_jax.data.batching import collate, shape_of
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.inference.model import PidModel
from pid_jax.training import config as configuration
from pid_jax.training import optimizer, step

DOCUMENTS = [[5, 6, 7, 8, 9, 10], [11, 2, 11, 2]]
PROMPTS = [[[3, 4, 5, 6], [9]], [[8, 2, 3, 4], []]]


@pytest.fixture
def _x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def without(varied_model: PidModel) -> PidModel:
    return PidModel(varied_model.model, varied_model.params)


@pytest.mark.parametrize(
    "options",
    [
        {"draft_tokens": 3, "stop": [[5, 6]], "bad_words_ids": [[7, 8]], "suppress_tokens": [4]},
        {"draft_tokens": 2, "allowed": [[[[5, 6], [7]], None], [None, [[8]]]], "compact": True},
        {
            "num_beams": 3,
            "num_return_sequences": 2,
            "length_penalty": 0.5,
            "early_stopping": "never",
            "no_repeat_ngram_size": 2,
            "repetition_penalty": 1.3,
            "stop": [[5, 6]],
            "compact": True,
        },
        {"num_beams": 3, "allowed": [[[[5, 6], [7]], None], [None, [[8]]]]},
        {
            "do_sample": True,
            "top_k": 9,
            "top_p": 0.8,
            "temperature": 0.7,
            "bad_words_ids": [[5], [6, 7]],
            "begin_suppress_tokens": [4],
            "num_return_sequences": 2,
            "compact": True,
        },
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.usefixtures("_x64")
def test_outputs_are_the_same(varied_model: PidModel, options: dict[str, Any]) -> None:
    options = {"max_new_tokens": 12, **options}
    wide = PidModel(varied_model.model, varied_model.params)
    found = wide.generate(DOCUMENTS, PROMPTS, **options)
    with jax.enable_x64(False):
        expected = varied_model.generate(DOCUMENTS, PROMPTS, **options)
    for row, other in zip(found, expected, strict=True):
        assert [one.tokens for one in row] == [one.tokens for one in other]
        np.testing.assert_allclose([a.score for a in row], [b.score for b in other], atol=1e-4)


@pytest.mark.usefixtures("_x64")
def test_streams_scores_and_warming_up(varied_model: PidModel) -> None:
    wide = PidModel(varied_model.model, varied_model.params)
    wide.warm_up(6, 2, 4, max_new_tokens=12, draft_tokens=2)
    parts = list(wide.stream(DOCUMENTS, PROMPTS, max_new_tokens=12, draft_tokens=2, every=3))
    assert sum(part.done for part in parts) == 4
    [[score]] = wide.score(DOCUMENTS[:1], [[[9]]], [[[5, 6, 1]]])
    assert np.isfinite(score)


@pytest.mark.usefixtures("_x64")
def test_a_training_step(varied_model: PidModel) -> None:
    examples = [TokenizedExample("a", DOCUMENTS[0], PROMPTS[0], [[5, 1], [6, 7, 1]])]
    batch = collate(examples, shape_of(examples), pad_token_id=0, decoder_start_token_id=0)
    settings = configuration.default()
    update = optimizer.build(settings)
    run = jax.jit(
        functools.partial(
            step.train_step,
            model=varied_model.model,
            optimizer=update,
            schedule=optimizer.learning_rate(settings),
            label_smoothing=0.1,
            z_loss=1e-4,
        )
    )
    state = step.initial_state(varied_model.params, update, seed=0)
    before = jax.tree.map(lambda leaf: leaf.dtype, state.params)
    for _ in range(2):
        state, metrics = run(state, jax.device_put(batch))
    assert np.isfinite(metrics["loss"])
    assert jax.tree.map(lambda leaf: leaf.dtype, state.params) == before

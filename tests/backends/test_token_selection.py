"""The likeliest token and its log-probability from one kernel, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax.backends.token_selection import (
    BLOCK,
    likeliest_with_logprob_kernel,
    likeliest_with_logprob_reference,
)

VERSIONS = [likeliest_with_logprob_kernel, likeliest_with_logprob_reference]


def expected_logprob(logits, tokens):
    logits = logits.astype(np.float64)
    normaliser = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - normaliser


@pytest.mark.parametrize("select", VERSIONS)
@pytest.mark.parametrize("vocab_size", [5, 96, BLOCK, 2 * BLOCK + 37])
def test_the_highest_logit_is_selected(select, vocab_size):
    logits = np.random.default_rng(vocab_size).normal(size=(2, 3, vocab_size)).astype(np.float32)
    array = jnp.asarray(20 * logits)
    tokens, logprobs = select(array, array)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_allclose(
        logprobs, expected_logprob(np.asarray(array), np.asarray(tokens)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("select", VERSIONS)
def test_processed_scores_select_and_logits_give_the_log_probability(select):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5000)).astype(np.float32)
    scores = np.where(np.arange(5000) % 7 == 3, logits, -np.inf).astype(np.float32)
    tokens, logprobs = select(jnp.asarray(scores), jnp.asarray(logits))
    np.testing.assert_array_equal(tokens, scores.argmax(-1))
    np.testing.assert_allclose(
        logprobs, expected_logprob(logits, np.asarray(tokens)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("select", VERSIONS)
def test_of_equal_scores_the_first_is_selected(select):
    scores = np.zeros((3, 2 * BLOCK), np.float32)
    scores[0, [5, 7, BLOCK + 5]] = 2.0
    scores[1, [BLOCK + 1, 9]] = 3.0
    scores[2] = -np.inf  # no token is allowed
    tokens, _ = select(jnp.asarray(scores), jnp.zeros(scores.shape))
    np.testing.assert_array_equal(tokens, [5, 9, 0])


@pytest.mark.parametrize("select", VERSIONS)
def test_a_logit_that_is_no_number_gives_a_score_that_is_none(select):
    logits = np.zeros((2, 50), np.float32)
    logits[1, 9] = np.nan
    array = jnp.asarray(logits)
    np.testing.assert_array_equal(np.isnan(select(array, array)[1]), [False, True])

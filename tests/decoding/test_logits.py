"""The rules on logits against transformers' processors, on padded rows against bare ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pid_jax.backends import selection
from pid_jax.decoding import logits as functions

bar_repeated_ngrams = jax.jit(functions.bar_repeated_ngrams, static_argnames="size")

DOCUMENTS, PROMPTS, WIDTH, VOCAB = 3, 4, 14, 11
FILLED = 12
"""Columns of the history before the next token's."""


@pytest.fixture(scope="module")
def rows() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, history and its mask. Few tokens, so that n-grams repeat; lengths 1 to 12."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(DOCUMENTS, PROMPTS, VOCAB)).astype(np.float32) * 3
    history = random.integers(0, 3, (DOCUMENTS, PROMPTS, WIDTH)).astype(np.int32)
    lengths = (1 + np.arange(DOCUMENTS * PROMPTS)).reshape(DOCUMENTS, PROMPTS, 1)
    columns = np.arange(WIDTH)
    mask = (columns >= FILLED - lengths) & (columns < FILLED)
    return jnp.asarray(logits), jnp.asarray(history), jnp.asarray(mask)


def processed(
    processor: LogitsProcessor, logits: jax.Array, history: jax.Array, mask: jax.Array
) -> np.ndarray:
    """transformers' result, row by row, each with its history without padding."""
    logits, history, mask = map(np.asarray, (logits, history, mask))
    result = np.empty_like(logits)
    for row in np.ndindex(logits.shape[:-1]):
        tokens = torch.tensor(history[row][mask[row]])[None].long()
        result[row] = processor(tokens, torch.tensor(logits[row])[None])[0].numpy()
    return result


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_repetition_penalty_is_that_of_transformers(rows, penalty):
    expected = processed(RepetitionPenaltyLogitsProcessor(penalty), *rows)
    found = jax.jit(functions.penalize_repetition)(*rows, jnp.float32(penalty))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 12, 13, 20])
def test_barred_ngrams_are_those_of_transformers(rows, size):
    expected = processed(NoRepeatNGramLogitsProcessor(size), *rows)
    found = bar_repeated_ngrams(*rows, FILLED, size=size)
    np.testing.assert_array_equal(found, expected)
    if size < 4:
        assert np.isinf(found).any()


def test_what_stands_in_later_columns_of_the_history_bars_nothing(rows):
    logits, history, mask = rows
    expected = bar_repeated_ngrams(logits, history, mask, FILLED, size=2)
    later = mask | (jnp.arange(WIDTH) >= FILLED)
    found = bar_repeated_ngrams(logits, history, later, FILLED, size=2)
    np.testing.assert_array_equal(found, expected)


def test_rows_may_be_filled_to_different_lengths(rows):
    """Without left padding, each row's length is the number of its tokens."""
    logits, history, mask = rows
    lengths = mask.sum(-1)
    left = jnp.arange(WIDTH) < lengths[..., None]
    moved = np.zeros_like(history)
    moved[left] = history[mask]
    expected = bar_repeated_ngrams(logits, history, mask, FILLED, size=3)
    found = bar_repeated_ngrams(logits, jnp.asarray(moved), left, lengths, size=3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("k", [1, 4, VOCAB, 50])
def test_the_k_likeliest_are_those_of_transformers(rows, k):
    expected = processed(TopKLogitsWarper(k), *rows)
    np.testing.assert_array_equal(
        jax.jit(selection.restrict_to_top_k, static_argnums=1)(rows[0], k), expected
    )


@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("size", [VOCAB, 5000])
def test_the_nucleus_is_that_of_transformers(rows, p, size):
    random = np.random.default_rng(size)
    logits = random.normal(size=(2, 3, size)).astype(np.float32) * 4
    logits[0, 0, ::2] = -np.inf
    expected = processed(TopPLogitsWarper(p), logits, *(row[:2, :3] for row in rows[1:]))
    found = jax.jit(selection.restrict_to_top_p)(logits, jnp.float32(p))
    np.testing.assert_array_equal(found, expected)


def test_equally_likely_tokens_stay_or_go_as_one():
    logits = jnp.log(jnp.array([0.3, 0.1, 0.3, 0.3]))
    np.testing.assert_array_equal(
        jnp.isfinite(selection.restrict_to_top_k(logits, 2)), [True, False, True, True]
    )
    np.testing.assert_array_equal(
        jnp.isfinite(selection.restrict_to_top_p(logits, 0.5)), [True, False, True, True]
    )


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_a_single_possible_token_always_stays(p):
    logits = jnp.full(7, -jnp.inf).at[3].set(-80.0)
    np.testing.assert_array_equal(selection.restrict_to_top_p(logits, p), logits)
    np.testing.assert_array_equal(selection.restrict_to_top_k(logits, 2), logits)


@pytest.mark.parametrize("ids", [[1], [4, 1]])
def test_tokens_are_barred_only_in_their_rows(rows, ids):
    logits = rows[0]
    when = jnp.arange(PROMPTS) < 2
    found = np.asarray(functions.bar_tokens(logits, ids, jnp.broadcast_to(when, logits.shape[:-1])))
    assert (found[:, :2, ids] == -np.inf).all()
    np.testing.assert_array_equal(found[:, 2:], logits[:, 2:])
    np.testing.assert_array_equal(np.delete(found, ids, -1), np.delete(logits, ids, -1))
    np.testing.assert_array_equal(functions.bar_tokens(logits, ids, when), found)


def all_rules(
    logits: jax.Array, history: jax.Array, mask: jax.Array, temperature: jax.Array
) -> jax.Array:
    logits = functions.penalize_repetition(logits, history, mask, 1.3)
    logits = bar_repeated_ngrams(logits, history, mask, FILLED, size=3)
    return selection.restrict_to_top_p(selection.restrict_to_top_k(logits / temperature, 6), 0.8)


@pytest.mark.parametrize("over", [lambda rule: rule, lambda rule: jax.vmap(rule, (0, 0, 0, None))])
def test_the_rules_one_after_the_other_are_those_of_transformers(rows, over: Callable):
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            NoRepeatNGramLogitsProcessor(3),
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(6),
            TopPLogitsWarper(0.8),
        ]
    )
    found = jax.jit(over(all_rules))(*rows, jnp.float32(0.7))
    np.testing.assert_allclose(found, processed(chain, *rows), rtol=1e-5)

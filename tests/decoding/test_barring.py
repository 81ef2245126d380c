"""Barred words and suppressed tokens against transformers' processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    NoBadWordsLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from pid_jax.decoding import barring
from pid_jax.errors import UserError

ROWS, WIDTH, VOCAB, END = 12, 10, 9, 1
FILLED = 8
"""Columns of the history before the next token's."""

bar_words = jax.jit(barring.bar_words)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_barred_words_are_those_of_transformers(words: list[list[int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(ROWS, VOCAB)).astype(np.float32)
    history = random.integers(0, 4, (ROWS, WIDTH)).astype(np.int32)
    lengths = 1 + np.arange(ROWS) % FILLED
    columns = np.arange(WIDTH)
    mask = (columns >= FILLED - lengths[:, None]) & (columns < FILLED)
    table = barring.barred_words(words, [END], VOCAB)
    found = logits
    if table is not None:
        found = bar_words(logits, history, mask, FILLED, table)
    expected = logits
    if [word for word in words if word != [END]]:
        processor = NoBadWordsLogitsProcessor(words, eos_token_id=END)
        expected = np.concatenate(
            [
                processor(torch.tensor(history[i][mask[i]])[None], torch.tensor(logits[i])[None])
                for i in range(ROWS)
            ]
        )
    np.testing.assert_array_equal(found, expected)


def test_words_of_like_number_and_length_make_like_shapes() -> None:
    tables = [
        barring.barred_words(words, [END], VOCAB)
        for words in ([[2, 3, 4]], [[5], [6, 7], [2, 3, 4]], [[2, 3]] * 4)
    ]
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(table)) for table in tables}
    assert len(shapes) == 1


def test_suppressed_tokens_are_those_of_transformers() -> None:
    logits = np.random.default_rng(0).normal(size=(2, VOCAB)).astype(np.float32)
    table = barring.suppressed_tokens([3, 4], [5], VOCAB)
    assert table is not None
    found = barring.suppress(jnp.asarray(logits), table, jnp.array([True, False]))
    history, given = torch.zeros(2, 3, dtype=torch.long), torch.tensor(logits)
    everywhere = SuppressTokensLogitsProcessor([3, 4])(history, given)
    at_first = SuppressTokensAtBeginLogitsProcessor([5], begin_index=3)(history, everywhere)
    np.testing.assert_array_equal(found[0], at_first[0])
    np.testing.assert_array_equal(found[1], everywhere[1])


def test_nothing_barred_makes_no_table_and_no_other_program() -> None:
    assert barring.suppressed_tokens((), (), VOCAB) is None
    assert barring.barred_words((), [END], VOCAB) is None
    assert barring.barred_words([[END]], [END], VOCAB) is None


@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids"])
def test_ids_that_no_token_has_are_named(name: str) -> None:
    makers = {
        "suppress_tokens": lambda: barring.suppressed_tokens([9], (), VOCAB),
        "begin_suppress_tokens": lambda: barring.suppressed_tokens((), [9], VOCAB),
        "bad_words_ids": lambda: barring.barred_words([[3, 9]], [END], VOCAB),
    }
    with pytest.raises(UserError, match=f"{name} holds the token id 9, but ids go from 0 to 8"):
        makers[name]()

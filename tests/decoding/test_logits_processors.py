"""Logits processors against those of transformers, on padded rows against bare ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from pid_jax import models
from pid_jax.decoding import logits_processors as ours
from pid_jax.decoding.logits_processors import LogitsContext
from pid_jax.errors import UserError
from tests.helpers.tiny_t5 import TINY

ROWS, WIDTH, VOCAB, END = 12, 10, 9, 1
FILLED = 8
"""Columns of the history before the next token's."""

CONFIG = models.build(TINY | {"vocab_size": VOCAB}).config


def rows_of(seed: int) -> tuple[jax.Array, LogitsContext]:
    """Logits `[1, ROWS, 1, VOCAB]`, and histories of different lengths with left padding."""
    random = np.random.default_rng(seed)
    logits = jnp.asarray(random.normal(size=(1, ROWS, 1, VOCAB)).astype(np.float32))
    history = random.integers(0, 4, (1, ROWS, 1, WIDTH)).astype(np.int32)
    lengths = (1 + np.arange(ROWS) % FILLED)[None, :, None, None]
    columns = np.arange(WIDTH)
    mask = (columns >= FILLED - lengths) & (columns < FILLED)
    step = np.minimum(lengths[..., 0] - 1, 3).astype(np.int32)
    document = random.integers(0, 4, (1, 6)).astype(np.int32)
    return logits, LogitsContext(
        unprocessed=logits,
        history=jnp.asarray(history),
        history_mask=jnp.asarray(mask),
        length=jnp.full((1, ROWS, 1), FILLED),
        step=jnp.asarray(step),
        max_new_tokens=jnp.full((1, ROWS, 1), 20),
        has_prompt=jnp.asarray(lengths[..., 0] - step > 1),
        has_allowed_list=jnp.zeros((1, ROWS, 1), bool),
        has_pattern=jnp.zeros((1, ROWS, 1), bool),
        documents=jnp.asarray(document),
        document_mask=jnp.arange(6)[None] < 5,
    )


def in_transformers(processor: object, logits: jax.Array, context: LogitsContext) -> np.ndarray:
    """Row by row, each with its history without padding."""
    result = np.array(logits)
    for row in range(ROWS):
        tokens = np.asarray(context.history)[0, row, 0][np.asarray(context.history_mask)[0, row, 0]]
        one = torch.tensor(np.asarray(logits)[0, row])
        result[0, row] = processor(torch.tensor(tokens)[None].long(), one)
    return result


def apply(processor: object, logits: jax.Array, context: LogitsContext) -> np.ndarray:
    """The processor is an argument: its numbers are no part of the program."""
    return np.asarray(jax.jit(lambda function, *rows: function(*rows))(processor, logits, context))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_bad_words_are_those_of_transformers(words: list[list[int]], seed: int) -> None:
    logits, context = rows_of(seed)
    processor = ours.BadWords.create(words, CONFIG)
    if processor is None:
        assert all(word == [END] for word in words)
        return
    theirs = NoBadWordsLogitsProcessor(words, eos_token_id=END)
    expected = in_transformers(theirs, logits, context)
    np.testing.assert_array_equal(apply(processor, logits, context), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(3))
def test_ngrams_of_the_document_are_those_of_transformers(size: int, seed: int) -> None:
    logits, context = rows_of(seed)
    document = torch.tensor(np.asarray(context.documents)[:, :5]).long()
    theirs = EncoderNoRepeatNGramLogitsProcessor(size, document)
    result = apply(ours.EncoderNoRepeatNgram.create(size, CONFIG), logits, context)
    np.testing.assert_array_equal(result, in_transformers(theirs, logits, context))
    assert np.isinf(result).any() == (size < 5)


@pytest.mark.parametrize("penalty", [0.5, 1.7])
def test_the_penalty_of_the_document_is_that_of_transformers(penalty: float) -> None:
    logits, context = rows_of(0)
    document = torch.tensor(np.asarray(context.documents)[:, :5]).long()
    theirs = EncoderRepetitionPenaltyLogitsProcessor(penalty, document)
    result = apply(ours.EncoderRepetitionPenalty.create(penalty, CONFIG), logits, context)
    np.testing.assert_allclose(result, in_transformers(theirs, logits, context), rtol=1e-6)


@pytest.mark.parametrize("min_p", [0.05, 0.4, 1.0])
def test_min_p_is_that_of_transformers(min_p: float) -> None:
    logits, context = rows_of(0)
    result = apply(ours.MinP.create(min_p, CONFIG), logits, context)
    expected = in_transformers(MinPLogitsWarper(min_p), logits, context)
    np.testing.assert_array_equal(result, expected)
    assert np.isinf(result).any()


def test_the_least_number_of_tokens_is_that_of_transformers() -> None:
    logits, context = rows_of(0)
    result = apply(ours.MinNewTokens.create(2, CONFIG), logits, context)
    for row in range(ROWS):
        length = FILLED - (FILLED - 1 - row % FILLED)
        step = int(context.step[0, row, 0])
        theirs = MinNewTokensLengthLogitsProcessor(length - step, 2, END, device="cpu")
        tokens = torch.zeros(1, length, dtype=torch.long)
        expected = theirs(tokens, torch.tensor(np.asarray(logits)[0, row]))
        np.testing.assert_array_equal(result[0, row], expected)


def test_forced_tokens_are_those_of_transformers() -> None:
    """The first where the history is the start token alone, the last before the greatest length."""
    most = 6
    logits, context = rows_of(0)
    lengths = context.history_mask.sum(axis=-1)
    context = context._replace(
        step=lengths - 1,
        has_prompt=jnp.zeros((1, ROWS, 1), bool),
        max_new_tokens=jnp.full((1, ROWS, 1), most - 1),
    )
    config = models.config_from_hf(
        {"model_type": "bart", "forced_bos_token_id": 4, "forced_eos_token_id": 2}
    )
    processor = ours.ForcedTokens.create(config)
    result = apply(processor, logits, context)
    expected = np.asarray(logits)
    for theirs in (
        ForcedBOSTokenLogitsProcessor(4),
        ForcedEOSTokenLogitsProcessor(most, 2, device="cpu"),
    ):
        expected = in_transformers(theirs, jnp.asarray(expected), context)
    np.testing.assert_array_equal(result, expected)
    assert (result == 0).any(axis=-1).sum() > 1


def test_no_first_token_is_forced_after_a_prompt() -> None:
    logits, context = rows_of(0)
    context = context._replace(
        step=jnp.zeros((1, ROWS, 1), jnp.int32), has_prompt=jnp.ones((1, ROWS, 1), bool)
    )
    processor = ours.ForcedTokens(first=4, last=None)
    np.testing.assert_array_equal(apply(processor, logits, context), logits)


def test_suppressed_tokens_are_those_of_transformers() -> None:
    logits, context = rows_of(0)
    everywhere = apply(ours.SuppressTokens.create([3, 4], CONFIG), logits, context)
    theirs = SuppressTokensLogitsProcessor([3, 4])
    np.testing.assert_array_equal(everywhere, in_transformers(theirs, logits, context))
    first = apply(ours.BeginSuppressTokens.create([5], CONFIG), logits, context)
    for row in range(ROWS):
        length, step = 1 + row % FILLED, int(context.step[0, row, 0])
        at_first = SuppressTokensAtBeginLogitsProcessor([5], begin_index=length - step)
        tokens = torch.zeros(1, length, dtype=torch.long)
        expected = at_first(tokens, torch.tensor(np.asarray(logits)[0, row]))
        np.testing.assert_array_equal(first[0, row], expected)


def test_words_of_like_number_and_length_make_like_shapes() -> None:
    tables = [
        ours.BadWords.create(words, CONFIG)
        for words in ([[2, 3, 4]], [[5], [6, 7], [2, 3, 4]], [[2, 3]] * 4)
    ]
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(table)) for table in tables}
    assert len(shapes) == 1


def test_only_end_tokens_are_no_bad_words() -> None:
    assert ours.BadWords.create([[END]], CONFIG) is None


@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids"])
def test_ids_that_no_token_has_are_named(name: str) -> None:
    makers = {
        "suppress_tokens": lambda: ours.SuppressTokens.create([9], CONFIG),
        "begin_suppress_tokens": lambda: ours.BeginSuppressTokens.create([9], CONFIG),
        "bad_words_ids": lambda: ours.BadWords.create([[3, 9]], CONFIG),
    }
    with pytest.raises(UserError, match=f"{name} has the token id 9, but ids go from 0 to 8"):
        makers[name]()

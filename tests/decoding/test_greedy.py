"""The greedy loop itself: its early end, its padding, and what it leaves uncomputed."""

import jax
import numpy as np
import pytest

from pid_jax.data.batching import BatchShape, collate
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding.greedy import greedy
from pid_jax.model import PidModel

decode = jax.jit(greedy, static_argnums=0, static_argnames=("max_new_tokens", "min_new_tokens"))


def run(model: PidModel, examples, shape, active, **options):
    batch = collate(examples, shape, pad_token_id=0, decoder_start_token_id=0)
    inputs = (batch.documents, batch.document_mask, batch.prompts, batch.prompt_mask)
    return jax.device_get(decode(model.model, model.params, *inputs, active, **options))


EXAMPLE = TokenizedExample("a", [5, 6, 7], [[3], [9, 9]], [(), ()])
SHAPE = BatchShape(documents=2, document_tokens=4, prompts=3, prompt_tokens=4, target_tokens=1)
ACTIVE = np.array([[True, True, False], [False, False, False]])


def test_absent_places_come_back_empty_and_are_not_waited_for(tiny_model):
    decoded = run(tiny_model, [EXAMPLE], SHAPE, ACTIVE, max_new_tokens=5)
    np.testing.assert_array_equal(decoded.lengths == 0, ~ACTIVE)
    assert (decoded.tokens[~ACTIVE] == 0).all()
    assert (decoded.scores[~ACTIVE] == 0).all()


def test_a_batch_in_which_nothing_is_active_ends_before_it_begins(tiny_model):
    decoded = run(tiny_model, [EXAMPLE], SHAPE, np.zeros_like(ACTIVE), max_new_tokens=5)
    assert (decoded.lengths == 0).all()


def test_an_ended_prompt_is_padded_and_its_score_stays(tiny_model):
    """Make the second token of one prompt the end token; the other prompt goes on."""
    free = run(tiny_model, [EXAMPLE], SHAPE, ACTIVE, max_new_tokens=5)
    second = int(free.tokens[0, 0, 1])
    config = tiny_model.config
    ending = type(config)(**{**vars(config), "eos_token_id": second})
    model = PidModel(type(tiny_model.model)(ending, tiny_model.model.dtype), tiny_model.params)
    decoded = run(model, [EXAMPLE], SHAPE, ACTIVE, max_new_tokens=5)
    length = int(decoded.lengths[0, 0])
    first_end = free.tokens[0, 0].tolist().index(second)
    assert length == first_end + 1
    assert (decoded.tokens[0, 0, length:] == config.pad_token_id).all()
    [[score]] = tiny_model.score([[5, 6, 7]], [[[3]]], [[free.tokens[0, 0, :length].tolist()]])
    assert decoded.scores[0, 0] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("new_tokens", [1, 2, 7])
def test_a_longer_limit_only_adds_tokens(tiny_model, new_tokens):
    short = run(tiny_model, [EXAMPLE], SHAPE, ACTIVE, max_new_tokens=new_tokens)
    long = run(tiny_model, [EXAMPLE], SHAPE, ACTIVE, max_new_tokens=8)
    np.testing.assert_array_equal(short.tokens, long.tokens[..., :new_tokens])

import jax
import pytest

from pid_jax import models
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Cancelled

DOCUMENTS = [[5, 6, 7, 8, 9, 1], [10, 11, 1]]
PROMPTS = [[[20, 21], [22]], [[20, 21]]]


def answers(model):
    rows = model.generate(DOCUMENTS, PROMPTS, max_new_tokens=4, compact=False)
    return [[(one.tokens, one.score) for one in row] for row in rows]


def test_other_parameters_have_their_own_answers_and_the_same_programs(tiny_model):
    first = PidModel(tiny_model.model, tiny_model.params)
    params = models.init_params(tiny_model.model, jax.random.key(7))
    before = answers(first)
    compiled = len(first.programs.compilations)
    second = first.with_params(params)
    assert answers(second) == answers(PidModel(tiny_model.model, params)) != before
    assert second.programs is first.programs
    assert len(first.programs.compilations) == compiled > 0
    assert answers(first) == before


def test_a_call_that_its_caller_cancels_ends_after_a_batch(tiny_model):
    calls = []

    def cancelled():
        calls.append(True)
        return True

    with pytest.raises(Cancelled):
        tiny_model.generate(DOCUMENTS, PROMPTS, max_new_tokens=2, batch_size=1, cancelled=cancelled)
    assert len(calls) == 1

"""The loop itself: its ends, its pauses, what it leaves alone, and what dropping prompts keeps."""

from typing import Any

import jax
import numpy as np
import pytest

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import BatchShape, collate
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding import beam, loop
from pid_jax.decoding.options import GenerationOptions, Strategy
from pid_jax.decoding.state import State
from pid_jax.model import PidModel
from pid_jax.prompt_in_decoder import EncodedDocuments

encode = jax.jit(prompt_in_decoder.encode, static_argnums=0)
prefill = jax.jit(loop.prefill, static_argnums=0, static_argnames=("strategy", "room"))
advance = jax.jit(loop.advance, static_argnums=0, static_argnames=("strategy",))
keep = jax.jit(loop.keep)
keep_documents = jax.jit(loop.keep_documents)

ROOM = 8
SHAPE = BatchShape(documents=3, document_tokens=8, prompts=4, prompt_tokens=4, target_tokens=1)
EXAMPLES = [
    TokenizedExample("a", [5, 6, 7], [[3], [9, 9], [], [4, 20, 8]], [()] * 4),
    TokenizedExample("b", [12, 3, 22, 9, 15, 1], [[21], [2, 17], [11, 11, 2]], [()] * 3),
]
BATCH = collate(EXAMPLES, SHAPE, pad_token_id=0, decoder_start_token_id=0)
ACTIVE = np.array([[True] * 4, [True, True, True, False], [False] * 4])
GREEDY, BEAMS = Strategy(), Strategy(num_beams=3)


def start(
    model: PidModel, strategy: Strategy, active: np.ndarray = ACTIVE, max_new_tokens: int = ROOM
) -> tuple[EncodedDocuments, State]:
    controls = GenerationOptions(max_new_tokens=max_new_tokens).controls(None, None)
    encoded = encode(model.model, model.params, BATCH.documents, BATCH.document_mask)
    inputs = (encoded, BATCH.prompts, BATCH.prompt_mask, active)
    state: State = prefill(
        model.model, model.params, *inputs, None, None, controls, strategy=strategy, room=ROOM
    )
    return encoded, state


def go_on(
    model: PidModel,
    strategy: Strategy,
    encoded: EncodedDocuments,
    state: State,
    *,
    until: int = ROOM,
    enough: tuple[int, int] = (0, 0),
    max_new_tokens: int = ROOM,
) -> State:
    controls = GenerationOptions(max_new_tokens=max_new_tokens).controls(None, None)
    limits = np.int32(until), (np.int32(enough[0]), np.int32(enough[1]))
    advanced: State = advance(
        model.model, model.params, encoded, state, controls, *limits, strategy=strategy
    )
    return advanced


def decoded(model: PidModel, **options: Any) -> Any:
    """What greedy decoding makes of the batch."""
    start_options = {k: v for k, v in options.items() if k in ("active", "max_new_tokens")}
    encoded, state = start(model, GREEDY, **start_options)
    options.pop("active", None)
    return jax.device_get(go_on(model, GREEDY, encoded, state, **options)).prompts.outputs


def test_absent_places_come_back_empty_and_are_not_waited_for(varied_model: PidModel) -> None:
    outputs = decoded(varied_model)
    assert outputs.done.all()
    np.testing.assert_array_equal(outputs.lengths == 0, ~ACTIVE)
    assert (outputs.tokens[~ACTIVE] == 0).all()
    assert (outputs.scores[~ACTIVE] == 0).all()


def test_a_batch_in_which_nothing_is_active_ends_before_it_begins(varied_model: PidModel) -> None:
    encoded, state = start(varied_model, GREEDY, active=np.zeros_like(ACTIVE))
    state = go_on(varied_model, GREEDY, encoded, state)
    assert state.step == 1
    assert (state.prompts.outputs.lengths == 0).all()


def test_an_ended_prompt_is_padded_and_its_score_is_that_of_its_tokens(
    varied_model: PidModel,
) -> None:
    outputs = decoded(varied_model)
    assert len(set(outputs.lengths[ACTIVE].tolist())) > 2, "all end together: nothing is tested"
    tokens = [
        [outputs.tokens[i, j, : outputs.lengths[i, j]].tolist() for j in range(len(row.prompts))]
        for i, row in enumerate(EXAMPLES)
    ]
    scores = varied_model.score(
        [example.document for example in EXAMPLES],
        [example.prompts for example in EXAMPLES],
        tokens,
    )
    for i, j in zip(*np.nonzero(ACTIVE), strict=True):
        length = outputs.lengths[i, j]
        assert 1 not in tokens[i][j][:-1]
        assert length == ROOM or tokens[i][j][-1] == 1
        assert (outputs.tokens[i, j, length:] == 0).all()
        assert outputs.scores[i, j] == pytest.approx(scores[i][j], abs=1e-4)


@pytest.mark.parametrize("new_tokens", [1, 2, 7])
def test_a_longer_limit_only_adds_tokens(varied_model: PidModel, new_tokens: int) -> None:
    short = decoded(varied_model, max_new_tokens=new_tokens)
    long = decoded(varied_model)
    assert short.done.all()
    np.testing.assert_array_equal(short.lengths, np.minimum(long.lengths, new_tokens))
    np.testing.assert_array_equal(
        short.tokens, np.where(np.arange(ROOM) < new_tokens, long.tokens, 0)
    )


@pytest.mark.parametrize("strategy", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_pauses_change_nothing(varied_model: PidModel, strategy: Strategy) -> None:
    encoded, state = start(varied_model, strategy)
    at_once = go_on(varied_model, strategy, encoded, state)
    for until in range(2, ROOM + 1):
        state = go_on(varied_model, strategy, encoded, state, until=until)
        assert state.step == until or state.prompts.outputs.done.all()
    jax.tree.map(np.testing.assert_array_equal, state, at_once)


@pytest.mark.parametrize("strategy", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("enough", [(2, 0), (1, 0), (0, 1)])
def test_it_pauses_as_soon_as_little_enough_is_left(
    varied_model: PidModel, strategy: Strategy, enough: tuple[int, int]
) -> None:
    def little_left(state: State) -> bool:
        live = ~np.asarray(state.prompts.outputs.done)
        return bool(live.sum(axis=1).max() <= enough[0] or live.any(axis=1).sum() <= enough[1])

    encoded, state = start(varied_model, strategy)
    paused = go_on(varied_model, strategy, encoded, state, enough=enough)
    assert little_left(paused)
    assert not little_left(state), "it need not advance at all: nothing is tested"
    before = go_on(varied_model, strategy, encoded, state, until=int(paused.step) - 1)
    assert not little_left(before)


@pytest.mark.parametrize("strategy", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_what_is_kept_goes_on_as_it_would_have(varied_model: PidModel, strategy: Strategy) -> None:
    """Two prompts of each of two documents, in another order; one place is not real."""
    encoded, state = start(varied_model, strategy)
    state = go_on(varied_model, strategy, encoded, state, until=3)
    documents = np.array([1, 0])
    prompts = np.array([[2, 0], [3, 1]])
    real = np.array([[True, False], [True, True]])
    few = keep(state, documents, prompts, real)
    kept = keep_documents(encoded, documents)
    assert kept.mask.shape[0] == 2
    assert few.prompts.outputs.done[0, 1]
    everything = go_on(varied_model, strategy, encoded, state)
    few = go_on(varied_model, strategy, kept, few)

    def compare(some: jax.Array, of_all: jax.Array) -> None:
        expected = np.asarray(of_all)[documents[:, None], prompts]
        if np.issubdtype(expected.dtype, np.floating):  # products of other shapes round otherwise
            np.testing.assert_allclose(np.asarray(some)[real], expected[real], atol=1e-4)
        else:
            np.testing.assert_array_equal(np.asarray(some)[real], expected[real])

    outputs, of_all = few.prompts.outputs, everything.prompts.outputs
    if isinstance(outputs, beam.Beams):
        assert isinstance(of_all, beam.Beams)
        jax.tree.map(compare, outputs.finished, of_all.finished)
    else:
        jax.tree.map(compare, outputs, of_all)
    assert few.prompts.outputs.done.all()

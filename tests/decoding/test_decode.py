"""The loop itself: its ends, its pauses, what it leaves alone, and what dropping prompts leaves."""

from typing import Any

import jax
import numpy as np
import pytest

from pid_jax import prompt_in_decoder
from pid_jax.data.batching import BatchShape, collate
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding import beam_search
from pid_jax.decoding.automata import Automata, Position
from pid_jax.decoding.compaction import Gather, gather_documents, gather_prompts
from pid_jax.decoding.decode import decode
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.decoding.options import GenerationOptions
from pid_jax.decoding.prefill import prefill
from pid_jax.decoding.state import State
from pid_jax.inference.model import PidModel
from pid_jax.prompt_in_decoder import EncodedDocuments

encode = jax.jit(prompt_in_decoder.encode, static_argnums=0)
jit_prefill = jax.jit(prefill, static_argnums=0, static_argnames="length")
jit_decode = jax.jit(decode, static_argnums=0)

LENGTH = 8
SHAPE = BatchShape(documents=3, document_tokens=8, prompts=4, prompt_tokens=4, target_tokens=1)
EXAMPLES = [
    TokenizedExample("a", [5, 6, 7], [[3], [9, 9], [], [4, 20, 8]], [()] * 4),
    TokenizedExample("b", [12, 3, 22, 9, 15, 1], [[21], [2, 17], [11, 11, 2]], [()] * 3),
]
BATCH = collate(EXAMPLES, SHAPE, pad_token_id=0, decoder_start_token_id=0)
ACTIVE = np.array([[True] * 4, [True, True, True, False], [False] * 4])
GREEDY, BEAMS = {}, {"num_beams": 3}


def options_of(model: PidModel, search: dict[str, int]) -> DecodingOptions:
    return GenerationOptions(**search).compiled(model.config, Automata())


def start(
    model: PidModel,
    search: dict[str, int],
    active: np.ndarray = ACTIVE,
    max_new_tokens: int | np.ndarray = LENGTH,
) -> tuple[EncodedDocuments, State]:
    encoded = encode(model.model, model.params, BATCH.documents, BATCH.document_mask)
    limits = np.broadcast_to(np.int32(max_new_tokens), active.shape)
    inputs = (encoded, BATCH.prompts, BATCH.prompt_mask, active, limits, Position(), None)
    options = options_of(model, search)
    state: State = jit_prefill(model.model, model.params, *inputs, options, length=LENGTH)
    return encoded, state


def go_on(
    model: PidModel,
    search: dict[str, int],
    encoded: EncodedDocuments,
    state: State,
    *,
    until: int = LENGTH,
    stop_at: tuple[int, int] = (0, 0),
) -> State:
    """stop_at: documents, prompts."""
    limits = np.int32(until), (np.int32(stop_at[0]), np.int32(stop_at[1]))
    options = options_of(model, search)
    after: State = jit_decode(model.model, model.params, encoded, state, options, *limits)
    return after


def decoded(model: PidModel, **options: Any) -> Any:
    """What greedy decoding makes of the batch."""
    encoded, state = start(model, GREEDY, **options)
    return jax.device_get(go_on(model, GREEDY, encoded, state)).prompts.sequences


def test_absent_prompts_have_no_outputs_and_delay_nothing(varied_model: PidModel) -> None:
    outputs = decoded(varied_model)
    assert outputs.finished.all()
    np.testing.assert_array_equal(outputs.lengths == 0, ~ACTIVE)
    assert (outputs.tokens[~ACTIVE] == 0).all()
    assert (outputs.scores[~ACTIVE] == 0).all()


def test_a_batch_without_active_prompts_takes_no_decode_step(varied_model: PidModel) -> None:
    encoded, state = start(varied_model, GREEDY, active=np.zeros_like(ACTIVE))
    state = go_on(varied_model, GREEDY, encoded, state)
    assert state.step == 1
    assert (state.prompts.sequences.lengths == 0).all()


def test_an_ended_prompt_is_padded_and_its_score_is_that_of_its_tokens(
    varied_model: PidModel,
) -> None:
    outputs = decoded(varied_model)
    assert len(set(outputs.lengths[ACTIVE].tolist())) > 2, "all end at once: nothing is tested"
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
        assert length == LENGTH or tokens[i][j][-1] == 1
        assert (outputs.tokens[i, j, length:] == 0).all()
        assert outputs.scores[i, j] == pytest.approx(scores[i][j], abs=1e-4)


@pytest.mark.parametrize("new_tokens", [1, 2, 7])
def test_a_longer_limit_only_adds_tokens(varied_model: PidModel, new_tokens: int) -> None:
    short = decoded(varied_model, max_new_tokens=new_tokens)
    long = decoded(varied_model)
    assert short.finished.all()
    np.testing.assert_array_equal(short.lengths, np.minimum(long.lengths, new_tokens))
    np.testing.assert_array_equal(
        short.tokens, np.where(np.arange(LENGTH) < new_tokens, long.tokens, 0)
    )


@pytest.mark.parametrize("search", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_pauses_change_nothing(varied_model: PidModel, search: dict[str, int]) -> None:
    encoded, state = start(varied_model, search)
    at_once = go_on(varied_model, search, encoded, state)
    for until in range(2, LENGTH + 1):
        state = go_on(varied_model, search, encoded, state, until=until)
        assert state.step == until or state.prompts.sequences.finished.all()
    jax.tree.map(np.testing.assert_array_equal, state, at_once)


@pytest.mark.parametrize("search", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("stop_at", [(0, 2), (0, 1), (1, 0)])
def test_it_pauses_once_few_are_active(
    varied_model: PidModel, search: dict[str, int], stop_at: tuple[int, int]
) -> None:
    def little_left(state: State) -> bool:
        live = ~np.asarray(state.prompts.sequences.finished)
        return bool(live.sum(axis=1).max() <= stop_at[1] or live.any(axis=1).sum() <= stop_at[0])

    encoded, state = start(varied_model, search)
    paused = go_on(varied_model, search, encoded, state, stop_at=stop_at)
    assert little_left(paused)
    assert not little_left(state), "it need not run at all: nothing is tested"
    before = go_on(varied_model, search, encoded, state, until=int(paused.step) - 1)
    assert not little_left(before)


@pytest.mark.parametrize("search", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_gathered_prompts_decode_as_they_would_have(
    varied_model: PidModel, search: dict[str, int]
) -> None:
    """Two prompts of each of two documents, in another order; one place is not real."""
    encoded, state = start(varied_model, search)
    state = go_on(varied_model, search, encoded, state, until=3)
    documents = np.array([1, 0])
    prompts = np.array([[2, 0], [3, 1]])
    real = np.array([[True, False], [True, True]])
    few = gather_prompts(state, Gather(documents, prompts, real))
    encoded_few = gather_documents(encoded, documents)
    assert encoded_few.mask.shape[0] == 2
    assert few.prompts.sequences.finished[0, 1]
    everything = go_on(varied_model, search, encoded, state)
    few = go_on(varied_model, search, encoded_few, few)

    def compare(some: jax.Array, of_all: jax.Array) -> None:
        expected = np.asarray(of_all)[documents[:, None], prompts]
        if np.issubdtype(expected.dtype, np.floating):  # products of other shapes round otherwise
            np.testing.assert_allclose(np.asarray(some)[real], expected[real], atol=1e-4)
        else:
            np.testing.assert_array_equal(np.asarray(some)[real], expected[real])

    outputs, of_all = few.prompts.sequences, everything.prompts.sequences
    if isinstance(outputs, beam_search.Beams):
        assert isinstance(of_all, beam_search.Beams)
        jax.tree.map(compare, outputs.pool, of_all.pool)
    else:
        jax.tree.map(compare, outputs, of_all)
    assert few.prompts.sequences.finished.all()


def test_each_prompt_may_have_a_limit_of_its_own(varied_model: PidModel) -> None:
    limits = np.array([[1, 2, 3, 8], [8, 1, 5, 1], [1, 1, 1, 1]], np.int32)
    limited, whole = decoded(varied_model, max_new_tokens=limits), decoded(varied_model)
    expected = np.where(ACTIVE, np.minimum(whole.lengths, limits), 0)
    np.testing.assert_array_equal(limited.lengths, expected)
    shown = np.arange(LENGTH) < expected[..., None]
    np.testing.assert_array_equal(limited.tokens, np.where(shown, whole.tokens, 0))

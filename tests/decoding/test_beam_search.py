"""Beam search against transformers, with a driver that has no cache."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax import prompt_in_decoder
from pid_jax.backends.selection import largest
from pid_jax.data.batching import Batch, BatchShape, collate
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding import beam_search, search
from pid_jax.decoding.beam_search import BeamSearch
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers import t5_checkpoints, transformers_models

END, VOCABULARY, LENGTH = 1, 12, 10
SHAPE = BatchShape(documents=2, document_tokens=9, prompts=3, prompt_tokens=5, target_tokens=LENGTH)
EXAMPLES = [
    TokenizedExample("a", [3, 4, 5, 6, 7, 8, 9, 10, 11], [[3, 4, 5], [9], []], [(), (), ()]),
    TokenizedExample("b", [11, 2, 11, 2, 1], [[8, 2, 3, 10], [6, 6]], [(), ()]),
]
BATCH = collate(EXAMPLES, SHAPE, pad_token_id=0, decoder_start_token_id=0)
SUBTASKS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
ACTIVE = np.array([[True, True, True], [True, True, False]])

Sequences = list[tuple[list[int], float]]
"""A prompt's tokens, end token included, and what transformers calls `sequences_scores`."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = t5_checkpoints.make(directory, vocab_size=VOCABULARY)
    return theirs, PidModel.from_pretrained(directory)


def in_transformers(
    theirs: Any, subtask: tuple[int, int], num_beams: int = 4, **options: Any
) -> Sequences:
    """What transformers returns for one prompt alone."""
    document, prompt = EXAMPLES[subtask[0]].document, EXAMPLES[subtask[0]].prompts[subtask[1]]
    options = {"num_return_sequences": num_beams, "max_new_tokens": LENGTH, **options}
    out = theirs.generate(
        input_ids=torch.tensor([document]),
        attention_mask=torch.ones(1, len(document), dtype=torch.long),
        decoder_input_ids=torch.tensor([[0, *prompt]]),
        num_beams=num_beams,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    lengths = (out.beam_indices >= 0).sum(-1).tolist()
    rows = out.sequences[:, 1 + len(prompt) :].tolist()
    scores = out.sequences_scores.tolist()
    return [(row[:n], score) for row, n, score in zip(rows, lengths, scores, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model: Any, params: Any, batch: Batch, tokens: jax.Array, step: int) -> jax.Array:
    """Logits `[B, P, K, V]` after `step` chosen tokens, everything computed anew."""
    documents, prompts, width, length = tokens.shape
    rows = batch._replace(
        prompts=jnp.repeat(batch.prompts, width, axis=1),
        prompt_mask=jnp.repeat(batch.prompt_mask, width, axis=1),
        targets=tokens.reshape(documents, prompts * width, length),
        target_mask=jnp.ones((documents, prompts * width, length), bool),
    )
    logits = prompt_in_decoder.teacher_forced_logits(model, params, rows)
    last = jax.lax.dynamic_index_in_dim(logits, step, axis=2, keepdims=False)
    return last.reshape(documents, prompts, width, -1)


@functools.partial(jax.jit, static_argnames=("early_stopping", "stop_pair"))
def choose(
    beams: beam_search.Beams,
    logits: jax.Array,
    batch: Batch,
    step: jax.Array,
    *,
    early_stopping: beam_search.EarlyStopping = False,
    min_new_tokens: int = 0,
    repetition_penalty: float = 1.0,
    allowed: np.ndarray | None = None,
    stop_pair: tuple[int, int] | None = None,
    max_new_tokens: int = LENGTH,
    length_penalty: float = 1.0,
) -> tuple[beam_search.Beams, jax.Array, jax.Array]:
    """`BeamSearch.select` with simple forms of the functions in its `SearchStep`.

    allowed: strings `[N, T]`, of which every sequence must be one, padded with -1.
    stop_pair: two tokens that end a sequence where the second follows the first.
    """
    vocabulary = jnp.arange(VOCABULARY)
    before_step = jnp.arange(LENGTH) < step

    def process(log_probabilities: jax.Array) -> jax.Array:
        tokens = beams.tokens[:, :, : log_probabilities.shape[2]]
        seen = ((tokens[..., None] == vocabulary) & before_step[:, None]).any(-2)
        seen |= (batch.prompts[..., None] == vocabulary).any(-2)[:, :, None]
        log_probabilities *= jnp.where(seen, repetition_penalty, 1.0)
        barred = (vocabulary == END) & (step < min_new_tokens)
        if allowed is not None:
            follows = ((tokens[..., None, :] == allowed) | ~before_step).all(-1)
            barred |= ~(follows[..., None] & (allowed[:, step, None] == vocabulary)).any(-2)
        return jnp.where(barred, -jnp.inf, log_probabilities)

    def ends(parents: jax.Array, tokens: jax.Array) -> jax.Array:
        if stop_pair is None:
            return tokens == END
        previous = jnp.take_along_axis(beams.tokens[..., step - 1], parents, axis=-1)
        stops = (previous == stop_pair[0]) & (tokens == stop_pair[1]) & (step > 0)
        return (tokens == END) | stops

    selection = BeamSearch(length_penalty, beams.tokens.shape[2], early_stopping).select(
        beams,
        logits,
        search.SearchStep(
            step=step,
            max_new_tokens=jnp.full(beams.tokens.shape[:2], max_new_tokens),
            context=lambda _: pytest.fail("beam search reads no context"),
            process=process,
            ends=ends,
            key=None,
            pad_token_id=0,
            end_token_count=1,
        ),
    )
    assert selection.parents is not None
    return selection.sequences, selection.parents, selection.tokens


def states(
    ours: PidModel,
    *,
    num_beams: int = 4,
    batch: Batch = BATCH,
    active: np.ndarray = ACTIVE,
    **options: Any,
) -> list[beam_search.Beams]:
    """The state before and after every step of a search, until every prompt is done."""
    passed = [BeamSearch(1.0, num_beams).start(jnp.asarray(active), LENGTH, 0, None)]
    while not passed[-1].finished.all():
        beams, step = passed[-1], jnp.int32(len(passed) - 1)
        logits = logits_of(ours.model, ours.params, batch, beams.tokens, step)
        first = len(passed) == 1
        after, parents, tokens = choose(
            beams, logits[:, :, :1] if first else logits, batch, step, **options
        )
        # What a caller does to its cache is what was done to the tokens.
        reordered = jnp.take_along_axis(beams.tokens, parents[..., None], axis=2)
        written = jnp.where(beams.finished[..., None], 0, after.tokens[..., step])
        np.testing.assert_array_equal(after.tokens[..., :step], reordered[..., :step])
        np.testing.assert_array_equal(tokens, written)
        passed.append(after)
    return jax.device_get(passed)


def sequences(beams: beam_search.Beams, subtask: tuple[int, int], count: int = 4) -> Sequences:
    best = jax.tree.map(lambda leaf: leaf[subtask][:count], beams.pool)
    return [
        (tokens[:length].tolist(), float(rank))
        for tokens, length, rank in zip(best.tokens, best.lengths, best.ranks, strict=True)
    ]


def assert_equal(ours: Sequences, theirs: Sequences) -> None:
    assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
    np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping"),
    [
        *((penalty, False) for penalty in (0.0, 0.6, 1.0, 2.0, -1.0)),
        *((penalty, "never") for penalty in (0.6, 2.0, -1.0)),
        (1.0, True),
    ],
)
def test_tokens_order_and_scores_equal_transformers(pair, length_penalty, early_stopping):
    theirs, ours = pair
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    last = states(ours, **options)[-1]
    for subtask in SUBTASKS:
        assert_equal(sequences(last, subtask), in_transformers(theirs, subtask, **options))


def test_each_option_makes_a_difference_here(pair):
    """Otherwise the comparison with transformers would show little."""
    _, ours = pair

    def outcome(**options: Any) -> tuple[Any, list[int]]:
        passed = states(ours, **options)
        result = [tokens for subtask in SUBTASKS for tokens, _ in sequences(passed[-1], subtask)]
        return result, [
            sum(not state.finished[subtask] for state in passed) for subtask in SUBTASKS
        ]

    result, steps = outcome()
    assert len({len(tokens) for tokens in result}) > 5
    assert sum(END in tokens for tokens in result) > len(result) / 2
    assert len(set(steps)) > 1
    for length_penalty in (0.0, 0.6, 2.0, -1.0):
        assert outcome(length_penalty=length_penalty)[0] != result
    assert outcome(early_stopping=True)[0] != result
    assert outcome(early_stopping="never")[1] != steps


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 4},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.8, "min_new_tokens": 2, "early_stopping": "never"},
        {"max_new_tokens": 1},
        {"max_new_tokens": 5, "early_stopping": True},
        {"max_new_tokens": 5, "early_stopping": "never", "length_penalty": 2.0},
    ],
    ids=str,
)
def test_limits_and_penalties_equal_transformers(pair, options):
    theirs, ours = pair
    last = states(ours, **options)[-1]
    for subtask in SUBTASKS:
        assert_equal(sequences(last, subtask), in_transformers(theirs, subtask, **options))


@pytest.mark.parametrize(("num_beams", "count"), [(2, 1), (6, 3)])
def test_the_best_of_fewer_or_more_beams_equal_transformers(pair, num_beams, count):
    theirs, ours = pair
    last = states(ours, num_beams=num_beams)[-1]
    for subtask in SUBTASKS:
        expected = in_transformers(theirs, subtask, num_beams, num_return_sequences=count)
        assert_equal(sequences(last, subtask, count), expected)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_stop_sequence_ends_a_beam_as_in_transformers(pair, early_stopping):
    theirs, ours = pair
    stop_pair = (3, 9)
    last = states(ours, stop_pair=stop_pair, early_stopping=early_stopping)[-1]
    stopped = 0
    for subtask in SUBTASKS:
        prompt_length = 1 + len(EXAMPLES[subtask[0]].prompts[subtask[1]])

        def stops(ids: torch.Tensor, _: Any, start: int = prompt_length, **__: Any) -> torch.Tensor:
            has_two_tokens = ids.shape[1] - start >= 2
            return (ids[:, -2:] == torch.tensor(stop_pair)).all(-1) & has_two_tokens

        expected = in_transformers(
            theirs, subtask, stopping_criteria=[stops], early_stopping=early_stopping
        )
        assert_equal(sequences(last, subtask), expected)
        stopped += sum(tuple(tokens[-2:]) == stop_pair for tokens, _ in expected)
    assert stopped


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.7])
def test_log_probabilities_are_the_models_own(pair, repetition_penalty):
    theirs, ours = pair
    best = states(ours, repetition_penalty=repetition_penalty)[-1].pool
    for i, j in SUBTASKS:
        for k in range(4):
            tokens = best.tokens[i, j, k, : best.lengths[i, j, k]].tolist()
            expected = transformers_models.log_probability(
                theirs, EXAMPLES[i].document, EXAMPLES[i].prompts[j], tokens
            )
            assert best.log_probabilities[i, j, k] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_a_constraint_with_fewer_strings_than_beams_leaves_beams_empty(pair, early_stopping):
    theirs, ours = pair
    strings = [[5, 1], [6, 7, 1], [6, 8, 8, 1]]
    allowed = np.full((3, LENGTH), -1)
    for row, string in zip(allowed, strings, strict=True):
        row[: len(string)] = string
    passed = states(ours, allowed=allowed, early_stopping=early_stopping, length_penalty=0.0)
    assert len(passed) - 1 == 4  # no step after the longest string
    for i, j in SUBTASKS:
        scored = [
            (
                string,
                transformers_models.log_probability(
                    theirs, EXAMPLES[i].document, EXAMPLES[i].prompts[j], string
                ),
            )
            for string in strings
        ]
        expected = sorted(scored, key=lambda item: -item[1])
        assert_equal(sequences(passed[-1], (i, j)), [*expected, ([], -np.inf)])
        assert passed[-1].pool.log_probabilities[i, j, 3] == -np.inf


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_prompt_that_is_done_no_longer_changes(pair, early_stopping):
    _, ours = pair
    passed = states(ours, early_stopping=early_stopping)
    done_after = [sum(not state.finished[subtask] for state in passed) for subtask in SUBTASKS]
    assert len(set(done_after)) > 1, "all end at once: nothing is tested"
    for subtask, end in zip(SUBTASKS, done_after, strict=True):
        for state in passed[end:]:
            jax.tree.map(
                lambda now, then, subtask=subtask: np.testing.assert_array_equal(
                    now[subtask], then[subtask]
                ),
                state,
                passed[end],
            )


def test_a_prompt_gets_the_same_wherever_it_stands(pair):
    """Every leaf of the state has the axes of documents and prompts first."""
    _, ours = pair
    batched = states(ours)[-1]
    turned = jax.tree.map(lambda leaf: leaf[::-1], BATCH)
    turned = turned._replace(
        prompts=turned.prompts[:, ::-1], prompt_mask=turned.prompt_mask[:, ::-1]
    )
    elsewhere = states(ours, batch=turned, active=ACTIVE[::-1, ::-1])[-1]
    for subtask in SUBTASKS:
        assert_equal(
            sequences(elsewhere, (1 - subtask[0], 2 - subtask[1])), sequences(batched, subtask)
        )


def test_absent_prompts_are_done_from_the_start_and_find_nothing(pair):
    _, ours = pair
    passed = states(ours)
    assert passed[0].finished.tolist() == (~ACTIVE).tolist()
    assert passed[-1].pool.lengths[1, 2].tolist() == [0, 0, 0, 0]
    assert (passed[-1].pool.tokens[1, 2] == 0).all()


def test_more_beams_than_half_the_vocabulary_are_refused(pair):
    _, ours = pair
    with pytest.raises(UserError, match="num_beams=7 is too many for a vocabulary of 12 tokens"):
        states(ours, num_beams=7)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(1, 3, 1), (2, 40, 3), (3, 77, 5), (2, 160, 8)]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_the_largest_are_those_of_a_stable_sort(sizes, seed, ties):
    rows, columns, count = sizes
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, columns)).astype(np.float32)
    if ties:
        values = np.round(values)
    values[random.random(values.shape) < random.random()] = -np.inf
    result, indices = jax.device_get(largest(jnp.asarray(values), count, group=4))
    order = np.argsort(-values, axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(result, np.take_along_axis(values, order, -1))
    np.testing.assert_array_equal(np.take_along_axis(values, indices, -1), result)

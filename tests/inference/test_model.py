"""`PidModel`: what it promises whatever the batch, and what it refuses."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax import models
from pid_jax.data.batching import bucket
from pid_jax.decoding.report import DecodingReport
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation
from tests.helpers.tiny_t5 import TINY

ids = st.integers(min_value=2, max_value=63)


@st.composite
def ragged_batches(draw):
    """Documents with their own numbers and lengths of prompts, of sizes that compile few shapes."""
    documents = draw(st.lists(st.lists(ids, min_size=1, max_size=12), min_size=1, max_size=3))
    prompts = [draw(st.lists(st.lists(ids, max_size=3), min_size=0, max_size=3)) for _ in documents]
    return documents, prompts


def alone(model, documents, prompts, **options):
    return [
        [model.generate([document], [[prompt]], **options)[0][0] for prompt in row]
        for document, row in zip(documents, prompts, strict=True)
    ]


def assert_same(left, right):
    assert [[g.tokens for g in row] for row in left] == [[g.tokens for g in row] for row in right]
    scores = [[g.score for row in side for g in row] for side in (left, right)]
    np.testing.assert_allclose(*scores, atol=2e-4)


@pytest.mark.parametrize("method", ["pid", "pie"])
@settings(max_examples=12, deadline=None)
@given(ragged=ragged_batches())
def test_generation_depends_on_neither_batch_mates_nor_padding(tiny_model, method, ragged):
    documents, prompts = ragged
    options = {"max_new_tokens": 2, "method": method}
    batched = tiny_model.generate(documents, prompts, **options)
    assert_same(batched, alone(tiny_model, documents, prompts, **options))


@settings(max_examples=12, deadline=None)
@given(ragged=ragged_batches(), data=st.data())
def test_generation_does_not_depend_on_order(tiny_model, ragged, data):
    documents, prompts = ragged
    rows = data.draw(st.permutations(range(len(documents))))
    columns = [data.draw(st.permutations(range(len(row)))) for row in prompts]
    shuffled = tiny_model.generate(
        [documents[i] for i in rows],
        [[prompts[i][j] for j in columns[i]] for i in rows],
        max_new_tokens=2,
        batch_size=1,
    )
    plain = tiny_model.generate(documents, prompts, max_new_tokens=2)
    assert_same(shuffled, [[plain[i][j] for j in columns[i]] for i in rows])


@settings(max_examples=12, deadline=None)
@given(ragged=ragged_batches(), data=st.data())
def test_scores_depend_on_neither_batch_mates_nor_padding(tiny_model, ragged, data):
    documents, prompts = ragged
    targets = [[data.draw(st.lists(ids, min_size=1, max_size=2)) for _ in row] for row in prompts]
    batched = tiny_model.score(documents, prompts, targets)
    for i, document in enumerate(documents):
        for j, prompt in enumerate(prompts[i]):
            [[single]] = tiny_model.score([document], [[prompt]], [[targets[i][j]]])
            assert batched[i][j] == pytest.approx(single, abs=1e-4)


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_a_generation_scores_what_score_says_of_it(tiny_model, method):
    documents, prompts = [[5, 6, 7], [8, 9]], [[[3], [4, 5]], [[]]]
    generations = tiny_model.generate(documents, prompts, max_new_tokens=5, method=method)
    ended = [[len(g.tokens) < 5 for g in row] for row in generations]
    targets = [
        [[*g.tokens, 1] if end else g.tokens for g, end in zip(row, ends, strict=True)]
        for row, ends in zip(generations, ended, strict=True)
    ]
    scores = tiny_model.score(documents, prompts, targets, method=method)
    for row, expected in zip(generations, scores, strict=True):
        assert [g.score for g in row] == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def ending_model():
    """A model that answers prompt [3] of document [5, 6, 7] with the end token at once."""
    model = models.build(TINY | {"tie_word_embeddings": False})
    params = models.init_params(model, jax.random.key(0))
    [[generation]] = PidModel(model, params).generate([[5, 6, 7]], [[[3]]], max_new_tokens=1)
    [likeliest] = generation.tokens
    kernel = params["lm_head"]["kernel"]
    swapped = kernel.at[:, 1].set(kernel[:, likeliest]).at[:, likeliest].set(kernel[:, 1])
    return PidModel(model, {**params, "lm_head": {"kernel": swapped}})


def test_the_end_token_ends_a_generation_and_is_left_out(ending_model):
    [[ended, other]] = ending_model.generate([[5, 6, 7]], [[[3], [9, 9]]], max_new_tokens=6)
    assert ended.tokens == []
    [[score]] = ending_model.score([[5, 6, 7]], [[[3]]], [[[1]]])
    assert ended.score == pytest.approx(score, abs=1e-4)
    assert other.tokens[-1:] != [1]


def test_min_new_tokens_bars_the_end_token(ending_model):
    options = {"max_new_tokens": 6, "min_new_tokens": 3}
    [[generation]] = ending_model.generate([[5, 6, 7]], [[[3]]], **options)
    assert len(generation.tokens) >= 3
    assert 1 not in generation.tokens
    ended = [1] if len(generation.tokens) < 6 else []
    [[score]] = ending_model.score([[5, 6, 7]], [[[3]]], [[[*generation.tokens, *ended]]])
    assert generation.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_batches_hold_documents_of_similar_length_and_are_reported(tiny_model, method):
    documents = [[5] * length for length in (3, 40, 2, 39, 4)]
    prompts = [[[6], [7]], [[8]], [], [[9]], [[10]]]
    batches = []
    fresh = PidModel(tiny_model.model, tiny_model.params)  # no shapes compiled yet, to use again
    [*rows] = fresh.generate(
        documents,
        prompts,
        max_new_tokens=2,
        method=method,
        batch_size=2,
        after_batch=lambda documents, seconds: batches.append((documents, seconds > 0)),
    )
    assert [len(row) for row in rows] == [2, 1, 0, 1, 1]
    # Under PiE two documents can be four pairs. Five are shared out evenly, three to a batch: the
    # two long ones with one of the first document's two, which count half; then the other two.
    expected = [2, 2] if method == "pid" else [2.5, 1.5]
    assert batches == [(documents, True) for documents in expected]


def test_documents_without_prompts_and_no_documents_at_all_are_fine(tiny_model):
    assert tiny_model.generate([], []) == []
    assert tiny_model.generate([[5], [6]], [[], []]) == [[], []]
    [none, one] = tiny_model.generate([[5], [6]], [[], [[7]]], max_new_tokens=2)
    assert none == []
    assert isinstance(one[0], Generation)
    assert one[0].text is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((["text"]), [["p"]]), r"documents\[0\] is text, but the model has no tokenizer"),
        (([[5]], [["p"]]), r"prompts\[0\]\[0\] is text, but the model has no tokenizer"),
        (([[5], [6]], [[[7]]]), "2 documents and 1 lists of prompts"),
        (([[5]], ["prompt"]), r"prompts\[0\] must be a list"),
        (("document", [["p"]]), "documents must be a list"),
        (([[5, 64]], [[[7]]]), r"documents\[0\] has the token id 64.*from 0 to 63"),
        (([[5]], [[[7], [-1]]]), r"prompts\[0\]\[1\] has the token id -1"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tiny_model, arguments, message):
    with pytest.raises(UserError, match=message):
        tiny_model.generate(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beam": 4}, "unknown option num_beam; known: .*num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"method": "pdi"}, "method='pdi' is unknown; supported: 'pid', 'pie'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_named(tiny_model, options, message):
    with pytest.raises(UserError, match=message):
        tiny_model.generate([[5]], [[[6]]], **options)


def test_targets_must_be_nested_as_prompts(tiny_model):
    with pytest.raises(UserError, match=r"prompts\[0\] has 2, but targets\[0\] 1"):
        tiny_model.score([[5]], [[[6], [7]]], [[[8]]])


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="dtype='float16' is not supported"):
        PidModel.from_pretrained("anywhere", dtype="float16")


def test_the_number_of_buckets_grows_with_the_logarithm_of_the_size():
    assert len({bucket(n, multiple=32) for n in range(1, 4097)}) <= 8 * 7


def test_threads_of_a_new_model_share_its_programs(varied_model: PidModel) -> None:
    model = PidModel(varied_model.model, varied_model.params)
    meeting = threading.Barrier(4, timeout=20)

    def ask() -> list[int]:
        meeting.wait()
        return model.generate([[5, 6]], [[[7]]], max_new_tokens=4)[0][0].tokens

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask) for _ in range(4)]
        assert len({tuple(answer.result()) for answer in answers}) == 1
    assert len(model.programs.compilations) == 3


@pytest.mark.parametrize("value", ["yes", "never", 1, 0, 2.5])
def test_compaction_is_true_false_or_auto(tiny_model: PidModel, value: Any) -> None:
    for call in (
        lambda: tiny_model.generate([[5]], [[[7]]], max_new_tokens=2, compact=value),
        lambda: tiny_model.warm_up(8, 1, 1, 2, compact=value),
    ):
        with pytest.raises(UserError, match="compact must be True or False, not"):
            call()
    assert tiny_model.generate([[5]], [[[7]]], max_new_tokens=2, compact=np.bool_(False))


def test_batches_are_as_large_after_a_call_with_one_document(varied_model: PidModel) -> None:
    model = PidModel(varied_model.model, varied_model.params)
    model.generate([[5] * 60], [[[7], [8]]], max_new_tokens=8)
    for _ in range(2):
        report = DecodingReport()
        model.generate([[5] * 60] * 40, [[[7], [8]]] * 40, max_new_tokens=8, report=report)
    assert report.batches == 1

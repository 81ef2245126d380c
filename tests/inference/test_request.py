"""What callers may give as documents, prompts, targets, lists and stops, and what is refused."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import torch

from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel

DOCUMENTS = [[5, 6, 7, 8], [11, 2, 11], [20, 3]]
PROMPTS = [[[3, 4], [9]], [[8, 2]], [[6], [7]]]
TARGETS = [[[12, 1], [13, 14, 1]], [[15, 1]], [[1], [16, 1]]]


@pytest.fixture(scope="module")
def scores(varied_model: PidModel) -> list[list[float]]:
    return varied_model.score(DOCUMENTS, PROMPTS, TARGETS)


def test_columns_of_a_shuffled_and_filtered_frame_are_read_in_their_order(
    varied_model: PidModel, scores: list[list[float]]
) -> None:
    frame = pandas.DataFrame({"document": DOCUMENTS, "prompts": PROMPTS, "targets": TARGETS})
    frame = frame.loc[[2, 0]]
    found = varied_model.score(frame.document, frame.prompts, frame.targets)
    assert found == [pytest.approx(scores[2], abs=1e-5), pytest.approx(scores[0], abs=1e-5)]


@pytest.mark.parametrize(
    "array",
    [np.asarray, lambda ids: np.asarray(ids, np.uint8), jnp.asarray, torch.tensor, tuple, iter],
    ids=["numpy", "uint8", "jax", "torch", "tuple", "iterator"],
)
def test_token_ids_come_in_arrays_of_any_kind(
    varied_model: PidModel, scores: list[list[float]], array: Any
) -> None:
    def rows(nested: list[list[list[int]]]) -> Any:
        return ([array(ids) for ids in row] for row in nested)

    found = varied_model.score(map(array, DOCUMENTS), rows(PROMPTS), rows(TARGETS))
    assert found == [pytest.approx(row, abs=1e-5) for row in scores]


def test_rectangular_arrays_are_rows(varied_model: PidModel, scores: list[list[float]]) -> None:
    documents, prompts = np.array([DOCUMENTS[2]]), np.array([PROMPTS[2]])
    [row] = varied_model.score(documents, prompts, TARGETS[2:])
    assert row == pytest.approx(scores[2], abs=1e-5)


def test_texts_come_in_arrays_and_columns(text_model: PidModel) -> None:
    documents = ["[user] a hotel", "[user] no"]
    prompts = [["hotel-area"], ["hotel-area"]]
    expected = text_model.generate(documents, prompts, max_new_tokens=4)
    for column in (np.array(documents), pandas.Series(documents, index=[7, 3]), tuple(documents)):
        assert text_model.generate(column, np.array(prompts), max_new_tokens=4) == expected


def test_lists_and_stops_come_in_arrays_too(varied_model: PidModel) -> None:
    options = {"max_new_tokens": 6}
    lists = [[[[5, 6], [7]], None], [None], [None, None]]
    expected = varied_model.generate(DOCUMENTS, PROMPTS, allowed=lists, **options)
    arrays = [((np.array([5, 6]), jnp.array([7])), None), [None], pandas.Series([None, None])]
    assert varied_model.generate(DOCUMENTS, PROMPTS, allowed=arrays, **options) == expected
    expected = varied_model.generate(DOCUMENTS, PROMPTS, stop=[[5], [7, 8]], **options)
    stops = np.array([5]), torch.tensor([7, 8])
    assert varied_model.generate(DOCUMENTS, PROMPTS, stop=stops, **options) == expected


@pytest.mark.parametrize(
    ("documents", "prompts", "message"),
    [
        ([5, 6, 7], PROMPTS, r"documents\[0\] must be text or a list of token ids, not an int \(5"),
        (np.array([5, 6, 7]), PROMPTS, r"documents\[0\] must be text .* not an int64 \(5\)"),
        ([[5.7], [5], [5]], PROMPTS, r"documents\[0\]\[0\] must be a token id.*a float \(5.7\)"),
        ([[5], [True], [5]], PROMPTS, r"documents\[1\]\[0\] must be .*not a bool \(True\)"),
        ([[5], np.array([True]), [5]], PROMPTS, r"documents\[1\]\[0\] must be .*bool"),
        ([[5], jnp.array([1.0]), [5]], PROMPTS, r"documents\[1\]\[0\] must be a token id"),
        ([[5], None, [5]], PROMPTS, r"documents\[1\] must be text or .*, not None"),
        ([[5], math.nan, [5]], PROMPTS, r"documents\[1\] must be text or .*, not a float \(nan\)"),
        ([[5], b"abc", [5]], PROMPTS, r"documents\[1\] must be text or .*, not a bytes"),
        ([[5], {"input_ids": [5]}, [5]], PROMPTS, r"documents\[1\] must be text or .*, not a dict"),
        ([[5], {5, 6}, [5]], PROMPTS, r"documents\[1\] must be text or .*, not a set"),
        ([[5], [[5]], [5]], PROMPTS, r"documents\[1\]\[0\] must be a token id, .* not a list"),
        ([[5], ["a"], [5]], PROMPTS, r"documents\[1\]\[0\] must be a token id, .* not text"),
        ([[5], np.array(3), [5]], PROMPTS, r"documents\[1\] must be text or .*, not a ndarray"),
        ("abc", PROMPTS, "documents must be a list of documents, not text"),
        (None, PROMPTS, "documents must be a list of documents, not None"),
        (5, PROMPTS, r"documents must be a list of documents, not an int \(5\)"),
        ({"a": [5]}, PROMPTS, "documents must be a list of documents, not a dict"),
        (pandas.DataFrame({"a": [1]}), PROMPTS, "documents must be a list .*, not a DataFrame"),
        (DOCUMENTS, "abc", "prompts must be a list with one list per document, not text"),
        (DOCUMENTS, [3, 4, 5], r"prompts\[0\] must be a list, one item per prompt, not an int"),
        (DOCUMENTS, [[3], [4], [5]], r"prompts\[0\]\[0\] must be text or .*, not an int \(3\)"),
        (DOCUMENTS, [[[3]], None, [[3]]], r"prompts\[1\] must be a list, .*, not None"),
        (DOCUMENTS, [[[3]], [None], []], r"prompts\[1\]\[0\] must be text or .*, not None"),
        (DOCUMENTS, [[[3]], [[2.0]], []], r"prompts\[1\]\[0\]\[0\] must be a token id"),
    ],
)
def test_what_is_neither_text_nor_token_ids_is_refused_by_place_and_type(
    varied_model: PidModel, documents: Any, prompts: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        varied_model.generate(documents, prompts)
    with pytest.raises(UserError, match=message):
        varied_model.stream(documents, prompts)
    with pytest.raises(UserError, match=message):
        varied_model.score(documents, prompts, prompts)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[[12], math.nan], [[15]], [[1], [16]]], r"targets\[0\]\[1\] must be text or .*\(nan\)"),
        ([[[12], [13]], math.nan, [[1], [16]]], r"targets\[1\] must be a list, one item per"),
        ([12, 13, 14], r"targets\[0\] must be a list, one item per prompt, not an int \(12\)"),
        (None, "targets must be a list with one list per document, not None"),
        ([[[12]], [[15]], [[1], [16]]], r"prompts\[0\] has 2, but targets\[0\] 1"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    varied_model: PidModel, targets: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        varied_model.score(DOCUMENTS, PROMPTS, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": [5]}, r"stop\[0\] must be text or a list of token ids, not an int \(5\)"),
        ({"stop": [[5.0]]}, r"stop\[0\]\[0\] must be a token id"),
        ({"stop": {"a": 1}}, "stop must be a list .*, not a dict"),
        ({"allowed": [5, 6, 7]}, r"allowed\[0\] must be a list, .*, not an int \(5\)"),
        ({"allowed": [[[5], None]] * 3}, r"allowed\[0\]\[0\]\[0\] must be text or .*not an int"),
        ({"allowed": [None] * 3}, r"allowed\[0\] must be a list, .* each of 2 prompts, not None"),
        ({"allowed": {"a": 1}}, "allowed must be a list with one list per document, not a dict"),
    ],
)
def test_lists_and_stops_that_do_not_fit_are_refused(
    varied_model: PidModel, options: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        varied_model.generate(DOCUMENTS, PROMPTS, **options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4.0, 1, 1), "document_tokens must be a whole number, not 4.0"),
        ((4, [[3]], 1), r"prompts must be a whole number, not \[\[3\]\]"),
        ((4, 0, 1), "prompts must be at least 1, not 0"),
        ((4, 1, "a"), "prompt_tokens must be a whole number, not 'a'"),
    ],
)
def test_sizes_to_warm_up_that_are_none_are_refused(
    varied_model: PidModel, sizes: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        varied_model.warm_up(*sizes)


def test_half_a_surrogate_pair_is_refused_by_place(text_model: PidModel) -> None:
    with pytest.raises(UserError, match=r"prompts\[0\]\[1\] has an unpaired surrogate"):
        text_model.generate(["[user] hello"], [["hotel-area", "a \ud83d"]])

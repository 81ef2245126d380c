"""Tokens compared up to where answers part."""

import pytest

from benchmarks import agreement
from benchmarks.workloads import Questions
from pid_jax.inference.model import PidModel


def test_equal_answers_agree() -> None:
    found = agreement.compare([[[1, 2], [3, 4]]], [[[1, 2], [3, 4]]])
    assert found == {"equal_tokens": 1.0, "equal_answers": 1.0, "divergences": []}


def test_tokens_after_the_first_difference_do_not_count() -> None:
    ours = [[[1, 2, 3, 4], [5, 5, 5, 5]]]
    theirs = [[[1, 9, 3, 4], [5, 5, 5, 5]]]
    found = agreement.compare(ours, theirs)
    assert found["equal_tokens"] == 5 / 8
    assert found["equal_answers"] == 0.5
    assert found["divergences"] == [[0, 0, 1]]


def test_a_gap_is_the_difference_of_two_scores(tiny_model: PidModel) -> None:
    questions = Questions([[3, 4, 5], [6, 7, 8]], [[[9, 10]], [[11, 12]]], new_tokens=2)
    ours, theirs = [[[20, 21]], [[30, 31]]], [[[20, 22]], [[40, 31]]]
    divergences = agreement.compare(ours, theirs)["divergences"]
    found = agreement.gaps(tiny_model, "pid", questions, ours, theirs, divergences)
    (first,), (second,) = (
        [
            tiny_model.score([document], [[prompt]], [[a]])[0][0]
            - tiny_model.score([document], [[prompt]], [[b]])[0][0]
        ]
        for document, prompt, a, b in (
            ([3, 4, 5], [9, 10], [20, 21], [20, 22]),
            ([6, 7, 8], [11, 12], [30], [40]),
        )
    )
    assert found == pytest.approx([first, second], abs=1e-5)

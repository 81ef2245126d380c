"""Partial outputs: they grow towards what `generate` returns."""

from typing import Any

import pytest

from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Partial

DOCUMENTS = [[5, 6, 7, 8, 9, 10], [11, 2, 11, 2], [], [20, 3, 19, 4]]
PROMPTS = [[[3, 4, 5, 6], [9], [9]], [[8, 2, 3, 4]], [], [[6], []]]
PLACES = [(i, j) for i, row in enumerate(PROMPTS) for j in range(len(row))]


def growth(partials: list[Partial], place: tuple[int, int]) -> list[Partial]:
    return [one for one in partials if (one.document, one.prompt) == place]


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "pie"},
        {"do_sample": True, "seed": 3, "min_new_tokens": 5},
        {"draft_tokens": 3},
        {"stop": [[5, 7], [3, 9]]},
    ],
    ids=str,
)
def test_outputs_grow_into_what_generate_returns(
    varied_model: PidModel, every: int, options: dict[str, Any]
) -> None:
    options = {"max_new_tokens": 12, **options}
    partials = list(varied_model.stream(DOCUMENTS, PROMPTS, every=every, **options))
    answers = varied_model.generate(DOCUMENTS, PROMPTS, **options)
    assert {(one.document, one.prompt) for one in partials} == set(PLACES)
    most = 0
    for i, j in PLACES:
        *growing, last = growth(partials, (i, j))
        assert last.done
        assert not any(one.done for one in growing)
        assert last.generation.tokens == answers[i][j].tokens
        assert last.generation.score == pytest.approx(answers[i][j].score, abs=1e-4)
        for one in growing:
            tokens = one.generation.tokens
            assert tokens == last.generation.tokens[: len(tokens)]
        most = max(most, len(growing))
    assert most > 3 if every == 1 else 0 < most <= 3


def test_outputs_come_while_others_still_grow(varied_model: PidModel) -> None:
    partials = list(varied_model.stream(DOCUMENTS, PROMPTS, 12))
    ends = [number for number, one in enumerate(partials) if one.done]
    assert ends[0] < len(partials) - len(PLACES)


def test_documents_are_answered_in_order(varied_model: PidModel) -> None:
    partials = varied_model.stream(DOCUMENTS * 2, PROMPTS * 2, 12, batch_size=3)
    numbers = [one.document for one in partials]
    assert {0, 1, 3} == set(numbers[: numbers.index(4)])
    assert {4, 5, 7} == set(numbers[numbers.index(4) :])


def test_texts_never_take_back_what_they_said(text_model: PidModel) -> None:
    """Not even where a stop sequence or a character is only half generated."""
    documents, prompts = ["[user] a hotel in the north"], [["hotel-area", "hotel-stars", "x"]]
    [free] = text_model.generate(documents, prompts, max_new_tokens=24)
    middle = max((one.text or "" for one in free), key=len)
    options = {"max_new_tokens": 24, "stop": [middle[len(middle) // 2 :][:5]]}
    partials = list(text_model.stream(documents, prompts, **options))
    [answers] = text_model.generate(documents, prompts, **options)
    assert [one.text for one in answers] != [one.text for one in free]
    for j, answer in enumerate(answers):
        texts = [one.generation.text or "" for one in growth(partials, (0, j))]
        assert texts[-1] == answer.text
        for text in texts:
            assert texts[-1].startswith(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1"),
        ({"num_beams": 2}, "stream yields one growing output"),
        ({"do_sample": True, "num_return_sequences": 2}, "stream yields one growing output"),
        ({"num_beam": 2}, "unknown option num_beam"),
        ({"method": "pdi"}, "method='pdi' is unknown"),
    ],
)
def test_what_does_not_fit_is_named_before_the_first_output(
    varied_model: PidModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        varied_model.stream(DOCUMENTS, PROMPTS, **options)

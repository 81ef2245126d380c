"""`stop` of `PidModel.generate`: outputs end at the first stop sequence, their text before it."""

from typing import Any

import pytest

from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel

DOCUMENTS = ["[user] a hotel in the north", "[user] no"]
PROMPTS = [["hotel-area", "hotel-stars"], ["train-day"]]
PLACES = [(0, 0), (0, 1), (1, 0)]


def generate(model: PidModel, **options: Any) -> Any:
    return model.generate(DOCUMENTS, PROMPTS, **{"max_new_tokens": 16, **options})


@pytest.fixture(scope="module")
def free(text_model: PidModel) -> Any:
    return generate(text_model)


def test_texts_end_before_the_first_stop_in_them(text_model: PidModel, free: Any) -> None:
    """Wherever the stops lie: at the border of tokens or across it."""
    text = free[0][0].text
    assert len(text) > 12
    shortened = 0
    for start in range(2, 10):
        stop = [text[start : start + 3], "\N{SNOWMAN}"]
        answers = generate(text_model, stop=stop)
        for i, j in PLACES:
            before, found, _ = free[i][j].text.partition(stop[0])
            assert answers[i][j].text == (before if found else free[i][j].text)
            shown = answers[i][j].tokens
            assert shown == free[i][j].tokens[: len(shown)]
            shortened += len(shown) < len(free[i][j].tokens)
    assert shortened >= 8


def test_beams_and_samples_stop_too(text_model: PidModel, free: Any) -> None:
    stop = free[0][0].text[3:5]
    for options in ({"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True}):
        for row in generate(text_model, stop=[stop], **options):
            for generation in row:
                for one in (generation, *generation.alternatives):
                    assert stop not in one.text


def test_token_sequences_are_cut_off_the_longest_first(text_model: PidModel, free: Any) -> None:
    tokens = free[0][0].tokens
    for stops in ([tokens[4:5], tokens[3:5]], [tokens[3:5], tokens[4:5]]):
        [answer] = text_model.generate(
            DOCUMENTS[:1], [PROMPTS[0][:1]], max_new_tokens=16, stop=stops
        )[0]
        place = tokens.index(tokens[4])
        expected = tokens[:place]
        if place and tokens[place - 1] == tokens[3]:
            expected = tokens[: place - 1]
        assert answer.tokens == expected
        assert answer.text == text_model.tokenizer.decode(expected)


def test_the_score_counts_what_was_cut_off(text_model: PidModel, free: Any) -> None:
    tokens = free[0][0].tokens
    place = tokens.index(tokens[4])
    answers = generate(text_model, stop=[tokens[4:5]])
    [[score]] = text_model.score(DOCUMENTS[:1], [PROMPTS[0][:1]], [[tokens[: place + 1]]])
    assert answers[0][0].score == pytest.approx(score, abs=1e-4)


def test_stops_that_do_not_fit_are_named(text_model: PidModel, varied_model: PidModel) -> None:
    with pytest.raises(UserError, match=r"stop\[1\] is empty"):
        generate(text_model, stop=["a", ""])
    with pytest.raises(UserError, match=r"stop\[0\] is text, but the model has no tokenizer"):
        varied_model.generate([[5]], [[[6]]], stop=["a"])
    with pytest.raises(UserError, match="stop must be a list of texts"):
        generate(text_model, stop="a")

"""`allowed` of `PidModel.generate`: outputs are of their lists, and the best of them are found."""

from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pid_jax import models
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation

DOCUMENTS = [[5, 6, 7, 8, 9, 10], [11, 2, 11, 2], [20, 3, 19, 4]]
PROMPTS = [[[3, 4, 5, 6], [9], [9]], [[8, 2, 3, 4]], [[6], []]]
COLOURS = [[5], [5, 6], [5, 6, 7, 8], [5, 9], [20, 21, 22]]
DIGITS = [[12], [13, 12], [13, 13, 13, 13, 12]]
ALLOWED = [[COLOURS, None, DIGITS], [DIGITS], [None, COLOURS]]


def generate(model: PidModel, **options: Any) -> list[list[Generation]]:
    return model.generate(DOCUMENTS, PROMPTS, **{"max_new_tokens": 12, **options})


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "pie"}, {"num_beams": 5}, {"do_sample": True, "temperature": 3.0}],
    ids=str,
)
def test_outputs_are_of_their_lists(varied_model: PidModel, options: dict[str, Any]) -> None:
    answers = generate(varied_model, allowed=ALLOWED, **options)
    for row, lists in zip(answers, ALLOWED, strict=True):
        for generation, strings in zip(row, lists, strict=True):
            assert strings is None or generation.tokens in strings


def test_prompts_without_a_list_are_answered_as_without_any(varied_model: PidModel) -> None:
    free, limited = generate(varied_model), generate(varied_model, allowed=ALLOWED)
    for i, lists in enumerate(ALLOWED):
        for j, strings in enumerate(lists):
            same = free[i][j].tokens == limited[i][j].tokens
            assert same if strings is None else not same


def test_as_many_beams_as_strings_put_all_of_them_in_order_of_their_scores(
    varied_model: PidModel,
) -> None:
    answers = generate(
        varied_model,
        allowed=ALLOWED,
        num_beams=5,
        num_return_sequences=5,
        length_penalty=0.0,
    )
    for i, lists in enumerate(ALLOWED):
        for j, strings in enumerate(lists):
            if strings is None:
                continue
            targets = [[*string, 1] for string in strings]
            [scores] = varied_model.score(
                [DOCUMENTS[i]], [[PROMPTS[i][j]] * len(strings)], [targets]
            )
            expected = sorted(zip(scores, strings, strict=True), reverse=True)
            found = [answers[i][j], *answers[i][j].alternatives]
            assert [one.tokens for one in found] == [string for _, string in expected]
            assert [one.score for one in found] == pytest.approx(
                [score for score, _ in expected], abs=1e-4
            )


def test_greedy_takes_the_likeliest_allowed_token_at_each_step(varied_model: PidModel) -> None:
    answers = generate(varied_model, allowed=ALLOWED)
    strings = [[*string, 1] for string in COLOURS]
    chosen: list[int] = []
    while len(strings) > 1:
        # All that may come next, as the ends of targets of one length.
        nexts = sorted({string[len(chosen)] for string in strings})
        targets = [[*chosen, token] for token in nexts]
        [scores] = varied_model.score(DOCUMENTS[:1], [PROMPTS[0][:1] * len(nexts)], [targets])
        chosen = targets[scores.index(max(scores))]
        strings = [string for string in strings if string[: len(chosen)] == chosen]
    assert [*answers[0][0].tokens, 1] == strings[0]


def test_too_short_strings_are_left_out(varied_model: PidModel) -> None:
    answers = generate(varied_model, allowed=ALLOWED, min_new_tokens=3)
    assert answers[1][0].tokens == [13, 13, 13, 13, 12]
    assert answers[0][0].tokens in ([5, 6, 7, 8], [20, 21, 22])


def test_rules_yield_to_the_list(varied_model: PidModel) -> None:
    """The only string repeats a token, which no_repeat_ngram_size=1 bars."""
    allowed = [[[[13, 13, 12]] if strings else None for strings in row] for row in ALLOWED]
    answers = generate(varied_model, allowed=allowed, no_repeat_ngram_size=1)
    assert answers[0][0].tokens == [13, 13, 12]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 4}, {"do_sample": True, "top_k": 3, "top_p": 0.9}, {"draft_tokens": 2}],
    ids=str,
)
def test_the_models_own_bars_yield_to_the_list(options: dict[str, Any]) -> None:
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1}
    sizes |= {"decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1}
    bart = models.build({"model_type": "bart", "vocab_size": 24, **sizes, **special})
    params = dict(models.init_params(bart, jax.random.key(0)))
    params["final_logits_bias"] = params["final_logits_bias"].at[:, jnp.array([12, 13])].set(-inf)
    allowed = [[COLOURS, None, DIGITS], [DIGITS], [None, [*DIGITS, [20, 21]]]]
    answers = generate(PidModel(bart, params), allowed=allowed, **options)
    for i, j in ((0, 2), (1, 0)):
        assert answers[i][j].tokens in DIGITS
        assert answers[i][j].score == -inf
    assert answers[2][1].tokens == [20, 21]
    assert answers[2][1].score > -inf


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ([[None] * 3, [None]], "3 documents and 2 lists"),
        ([[None] * 2, [None], [None] * 2], r"allowed\[0\] must be a list.*each of 3 prompts, but"),
        ([[None] * 3, [[]], [None] * 2], r"allowed\[1\]\[0\] is an empty list"),
        ([[None] * 3, ["yes"], [None] * 2], r"allowed\[1\]\[0\] must be a list of texts"),
        ([[None] * 3, [["yes"]], [None] * 2], r"allowed\[1\]\[0\]\[0\] is text, but the model has"),
        ([[None] * 3, [[[99]]], [None] * 2], r"allowed\[1\]\[0\]\[0\] has the token id 99"),
        ([[None] * 3, [[[5] * 12]], [None] * 2], r"allowed\[1\]\[0\].*13 tokens.*max_new_tokens"),
    ],
)
def test_lists_that_do_not_fit_are_named(
    varied_model: PidModel, allowed: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(varied_model, allowed=allowed)


def test_a_list_that_the_least_length_empties_is_refused(varied_model: PidModel) -> None:
    with pytest.raises(UserError, match=r"allowed\[0\]\[0\] admits no output: min_new_tokens=5"):
        generate(varied_model, allowed=ALLOWED, min_new_tokens=5)


def test_lists_of_text_are_answered_in_text(text_model: PidModel) -> None:
    texts = ["the city centre", "none", "north", "1 2 : 3 0"]
    prompts = [["hotel-area", "hotel-stars"]]
    allowed = [[texts, texts[1:2]]]
    [[area, stars]] = text_model.generate(["[user] a hotel"], prompts, allowed=allowed)
    assert area.text in texts
    assert stars.text == "none"
    [[score]] = text_model.score(["[user] a hotel"], [["hotel-stars"]], [["none"]])
    assert stars.score == pytest.approx(score, abs=1e-4)


def test_stops_mean_nothing_to_outputs_of_a_list(varied_model: PidModel) -> None:
    """Neither their tokens nor their texts are cut, however they are decoded."""
    allowed = [[[[5, 6, 7]], None, [[5, 6, 7]]], [[[7]]], [[[6, 7]], [[7, 6]]]]
    stop = [[6, 7], [7]]
    free = generate(varied_model, stop=stop)
    for options in ({}, {"num_beams": 3}, {"draft_tokens": 3}, {"do_sample": True}):
        answers = generate(varied_model, allowed=allowed, stop=stop, **options)
        for row, lists in zip(answers, allowed, strict=True):
            for answer, strings in zip(row, lists, strict=True):
                assert strings is None or [answer.tokens] == strings
    [*partials] = varied_model.stream(DOCUMENTS, PROMPTS, 12, allowed=allowed, stop=stop)
    tokens_so_far = [
        one.generation.tokens for one in partials if (one.document, one.prompt) == (0, 0)
    ]
    assert tokens_so_far == [[5], [5, 6], [5, 6, 7], [5, 6, 7]]
    free_one = next(one for one in partials if one.done and (one.document, one.prompt) == (0, 1))
    assert free_one.generation.tokens == free[0][1].tokens


def test_a_stop_text_does_not_cut_a_text_of_a_list(text_model: PidModel) -> None:
    arguments = ["[user] a hotel"], [["hotel-area", "hotel-area"]]
    options = {"allowed": [[["the city centre"], ["a , b"]]], "stop": ["city", " , "]}
    [[one, other]] = text_model.generate(*arguments, **options)
    assert (one.text, other.text) == ("the city centre", "a , b")
    for partial in text_model.stream(*arguments, **options):
        assert (one.text, other.text)[partial.prompt].startswith(partial.generation.text or "")

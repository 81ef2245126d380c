"""Options of single prompts and callers' own functions: limits, patterns, logits processors."""

import json
import re
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
import pytest

import pid_jax
from pid_jax import PidModel, UserError

DOCUMENTS = [[5, 6, 7, 8], [9, 4, 6]]
PROMPTS = [[[2, 11], [3], []], [[2]]]


@pytest.mark.parametrize("method", ["pid", "pie"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True}, {"draft_tokens": 2}])
def test_every_prompt_may_have_its_own_limit(
    varied_model: PidModel, search: dict[str, Any], method: Any
) -> None:
    options = {"method": method, "suppress_tokens": [1], **search}
    limits = [[3, 1, 8], [5]]
    answers = varied_model.generate(DOCUMENTS, PROMPTS, max_new_tokens=limits, **options)
    assert [[len(one.tokens) for one in row] for row in answers] == limits
    assert {one.finish_reason for row in answers for one in row} == {"length"}
    for i, row in enumerate(answers):
        for j, one in enumerate(row):
            [[alone]] = varied_model.generate(
                [DOCUMENTS[i]], [[PROMPTS[i][j]]], max_new_tokens=limits[i][j], **options
            )
            assert one.tokens == alone.tokens
            assert one.score == pytest.approx(alone.score, abs=1e-4)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ([[3, 1], [5]], "nested as the prompts are"),
        ([[3, 1, 2]], "nested as the prompts are"),
        ([[3, 1, 0], [5]], r"max_new_tokens\[0\]\[2\] must be at least 1"),
        ([3, 1], r"max_new_tokens\[0\] must be a list of numbers"),
    ],
    ids=str,
)
def test_limits_that_do_not_fit_are_named(
    varied_model: PidModel, limits: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        varied_model.generate(DOCUMENTS, PROMPTS, max_new_tokens=limits)


def bar_even_tokens(logits: Any, context: Any) -> Any:
    even = jnp.arange(logits.shape[-1]) % 2 == 0
    return jnp.where(even, -jnp.inf, logits)


@flax.struct.dataclass
class NotYet:
    """Bars a token in the first steps; both numbers are leaves."""

    token: Any
    steps: Any

    def __call__(self, logits: Any, context: Any) -> Any:
        too_early = context.step < self.steps
        is_token = jnp.arange(logits.shape[-1]) == self.token
        return jnp.where(too_early[..., None] & is_token, -jnp.inf, logits)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True}, {"draft_tokens": 2}])
def test_a_function_of_the_caller_processes_logits(
    varied_model: PidModel, search: dict[str, Any]
) -> None:
    options = {"max_new_tokens": 6, **search}
    plain = varied_model.generate(DOCUMENTS, PROMPTS, **options)
    answers = varied_model.generate(
        DOCUMENTS, PROMPTS, logits_processors=[bar_even_tokens], **options
    )
    assert any(token % 2 == 0 for row in plain for one in row for token in one.tokens)
    assert not any(token % 2 == 0 for row in answers for one in row for token in one.tokens)


def test_another_number_of_a_callers_processor_compiles_nothing(varied_model: PidModel) -> None:
    model = PidModel(varied_model.model, varied_model.params)
    compiled = []
    for steps in (0, 2, 4):
        own = [NotYet(jnp.int32(1), jnp.int32(steps))]
        answers = model.generate(DOCUMENTS, PROMPTS, max_new_tokens=6, logits_processors=own)
        least = model.generate(DOCUMENTS, PROMPTS, max_new_tokens=6, min_new_tokens=steps)
        assert answers == least
        compiled.append(len(model.programs.compilations))
    assert compiled[0] == compiled[-1]


def test_limits_may_come_from_a_generator(varied_model: PidModel) -> None:
    limits = (iter(row) for row in [[3, 1, 2], [2]])
    answers = varied_model.generate(DOCUMENTS, PROMPTS, max_new_tokens=limits, suppress_tokens=[1])
    assert [[len(one.tokens) for one in row] for row in answers] == [[3, 1, 2], [2]]


def test_a_limit_below_the_least_number_of_tokens_is_named(varied_model: PidModel) -> None:
    with pytest.raises(UserError, match=r"max_new_tokens\[0\]\[1\]=1 is below min_new_tokens=2"):
        varied_model.generate(DOCUMENTS, PROMPTS, max_new_tokens=[[3, 1, 2], [2]], min_new_tokens=2)


def test_plain_numbers_in_a_processor_are_leaves_too(varied_model: PidModel) -> None:
    model = PidModel(varied_model.model, varied_model.params)
    for steps in (2, np.int64(3), jnp.int32(4)):
        own = [NotYet(1, steps)]
        model.generate(DOCUMENTS, PROMPTS, max_new_tokens=6, logits_processors=own)
    assert len([one for one in model.programs.compilations if one.program == "decode"]) == 1


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (lambda logits, context: None, "<lambda> must return float32 logits.*not NoneType"),
        (lambda logits, context: logits[:, :, 0], r"must return .* not float32\[2,4,24\]"),
        (lambda logits, context: logits > 0, "must return float32 logits.*not bool"),
        (NotYet, r"logits_processors\[0\] is the class NotYet: give an instance"),
    ],
    ids=["nothing", "shape", "type", "class"],
)
def test_what_a_processor_must_return_is_said(
    varied_model: PidModel, processor: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        varied_model.generate(
            DOCUMENTS, [[[2]] * 4, [[2]]], max_new_tokens=6, logits_processors=[processor]
        )


def tokens_of(model: PidModel, **options: Any) -> list[list[int]]:
    answers = model.generate(DOCUMENTS, PROMPTS, max_new_tokens=8, **options)
    return [one.tokens for row in answers for one in row]


def test_options_that_read_the_document_change_outputs(varied_model: PidModel) -> None:
    plain = tokens_of(varied_model)
    assert tokens_of(varied_model, encoder_repetition_penalty=3.0) != plain
    repeated = varied_model.generate(
        DOCUMENTS, PROMPTS, max_new_tokens=8, encoder_no_repeat_ngram_size=1
    )
    for document, row in zip(DOCUMENTS, repeated, strict=True):
        assert all(not set(one.tokens) & set(document) for one in row)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True}, {"draft_tokens": 2}])
def test_outputs_match_their_patterns(text_model: PidModel, search: dict[str, Any]) -> None:
    pytest.importorskip("outlines_core")
    schema = pid_jax.JsonSchema(
        {"type": "array", "items": {"enum": ["north", "south"]}, "maxItems": 2}
    )
    documents = ["a hotel in the north", "two nights in the south"]
    prompts = [["area", "price", "stars"], ["area"]]
    digits = pid_jax.Regex("[0-9]{2,3}")
    try:
        allowed = [[digits, None, ["cheap", "dear"]], [schema]]
        answers = text_model.generate(
            documents, prompts, allowed=allowed, max_new_tokens=24, **search
        )
    except UserError as error:
        pytest.skip(f"the tokenizer cannot spell the schema: {error}")
    assert re.fullmatch("[0-9]{2,3}", answers[0][0].text)
    assert answers[0][2].text in ("cheap", "dear")
    assert set(json.loads(answers[1][0].text)) <= {"north", "south"}


def test_a_pattern_has_the_least_number_of_tokens(text_model: PidModel) -> None:
    """The end token is likeliest by far, and the pattern would allow it after two letters."""
    pytest.importorskip("outlines_core")

    def end_is_likely(logits: Any, context: Any) -> Any:
        is_end = jnp.arange(logits.shape[-1]) == text_model.config.eos_token_id
        return logits + 100.0 * is_end

    [[short, long]] = [
        [
            text_model.generate(
                ["a hotel"],
                [["area"]],
                allowed=[[pid_jax.Regex("[a-z]{2,30}")]],
                max_new_tokens=30,
                min_new_tokens=least,
                logits_processors=[end_is_likely],
            )[0][0]
            for least in (0, 8)
        ]
    ]
    assert len(short.tokens) <= 2
    assert len(long.tokens) >= 8
    assert re.fullmatch("[a-z]{2,30}", str(long.text))


def test_a_pattern_without_a_short_match_is_named(text_model: PidModel) -> None:
    pytest.importorskip("outlines_core")
    with pytest.raises(UserError, match=r"allowed\[0\]\[0\]: the shortest match of .* takes"):
        text_model.generate(
            ["a"], [["b"]], allowed=[[pid_jax.Regex("[a-z]{40}")]], max_new_tokens=3
        )


def test_patterns_apply_to_each_prompt_of_a_stream(text_model: PidModel) -> None:
    pytest.importorskip("outlines_core")
    texts = [
        partial.generation.text
        for partial in text_model.stream(
            ["a hotel"], [["area"]], allowed=[[pid_jax.Regex("[a-z]{3}")]], max_new_tokens=8
        )
        if partial.done
    ]
    assert len(texts) == 1
    assert re.fullmatch("[a-z]{3}", str(texts[0]))
    assert np.all([text is not None for text in texts])

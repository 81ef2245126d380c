"""Options of single prompts and callers' own functions: limits, patterns, logits processors."""

import json
import re
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import pid_jax
from pid_jax import PidModel, UserError, models
from pid_jax.decoding.report import DecodingReport
from tests.helpers import transformers_models
from tests.helpers.tiny_families import VARIANTS

DOCUMENTS = [[5, 6, 7, 8], [9, 4, 6]]
PROMPTS = [[[2, 11], [3], []], [[2]]]
SEARCHES = [{}, {"num_beams": 3}, {"do_sample": True}, {"draft_tokens": 2}]


@pytest.fixture(scope="module")
def theirs(varied_model: PidModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same model in transformers."""
    directory = tmp_path_factory.mktemp("checkpoint")
    varied_model.save_pretrained(directory)
    return transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()


@pytest.mark.parametrize("method", ["pid", "pie"])
@pytest.mark.parametrize("search", SEARCHES)
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


def test_limits_of_prompts_apply_to_lists_in_a_compacted_batch(
    varied_model: PidModel, theirs: Any
) -> None:
    """The prompts with short limits are removed from the batch, and those of a list, too."""
    prompts = [[[2, 11], [3], [], [5], [6, 2], [7], [8], [9]]] * 2
    limits = [[1, 2, 12, 3, 1, 2, 9, 4], [5, 2, 1, 1, 2, 2, 12, 3]]
    listed: list[list[list[list[int]] | None]] = [
        [None, [[4]], [[7, 7, 9, 7]], None, None, [[8]], None, [[2], [4, 6, 3]]],
        [[[6, 5, 4, 3]], None, None, None, [[3]], None, None, [[9, 9], [9, 4]]],
    ]

    def expected(i: int, j: int) -> list[int]:
        document, prompt, choices = DOCUMENTS[i], prompts[i][j], listed[i][j]
        options: dict[str, Any] = {"max_new_tokens": limits[i][j], "do_sample": False}
        if choices is not None:
            before = 1 + len(prompt)

            def next_tokens(_: int, tokens: Any) -> list[int]:
                output = tokens.tolist()[before:]
                after = [[*one, 1][len(output)] for one in choices if one[: len(output)] == output]
                return after or [1]

            options["prefix_allowed_tokens_fn"] = next_tokens
        return transformers_models.answer(theirs, document, prompt, **options)

    report = DecodingReport()
    answers = varied_model.generate(
        DOCUMENTS, prompts, max_new_tokens=limits, allowed=listed, compact=True, report=report
    )
    assert report.row_steps_saved > 0
    assert [[one.tokens for one in row] for row in answers] == [
        [expected(i, j) for j in range(len(row))] for i, row in enumerate(prompts)
    ]


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


@pytest.mark.parametrize("search", SEARCHES)
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


@pytest.mark.parametrize("method", ["pid", "pie"])
@pytest.mark.parametrize(
    "options",
    [
        {"encoder_repetition_penalty": 3.0},
        {"encoder_repetition_penalty": 0.4},
        {"encoder_no_repeat_ngram_size": 1},
        {"encoder_no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_options_that_read_the_document_are_those_of_transformers(
    varied_model: PidModel, theirs: Any, method: Any, options: dict[str, Any]
) -> None:
    """Under "pie" the prompt is part of the document. Long documents have tokens of the outputs."""
    random = np.random.default_rng(2)
    documents = [random.integers(2, 24, size=120).tolist() for _ in DOCUMENTS]

    def expected(**options: Any) -> list[list[int]]:
        options |= {"max_new_tokens": 8, "do_sample": False}
        return [
            transformers_models.answer(theirs, document, prompt, **options)
            if method == "pid"
            else transformers_models.answer(theirs, [*prompt, *document], [], **options)
            for document, prompts in zip(documents, PROMPTS, strict=True)
            for prompt in prompts
        ]

    answers = varied_model.generate(documents, PROMPTS, max_new_tokens=8, method=method, **options)
    assert [one.tokens for row in answers for one in row] == expected(**options)
    assert expected(**options) != expected()


@pytest.mark.parametrize("search", SEARCHES)
def test_outputs_match_their_patterns(text_model: PidModel, search: dict[str, Any]) -> None:
    """The tokenizer has a token for every byte, so that it spells any text."""
    schema = pid_jax.JsonSchema(
        {"type": "array", "items": {"enum": ["north", "south"]}, "maxItems": 2}
    )
    documents = ["a hotel in the north", "two nights in the south"]
    prompts = [["area", "price", "stars"], ["area"]]
    allowed = [[pid_jax.Regex("[0-9]{2,3}"), None, ["cheap", "dear"]], [schema]]
    answers = text_model.generate(documents, prompts, allowed=allowed, max_new_tokens=24, **search)
    assert re.fullmatch("[0-9]{2,3}", str(answers[0][0].text))
    assert answers[0][2].text in ("cheap", "dear")
    items = json.loads(str(answers[1][0].text))
    assert isinstance(items, list)
    assert len(items) <= 2
    assert set(items) <= {"north", "south"}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("most", [5, 12])
def test_outputs_match_their_patterns_beside_forced_tokens(
    text_model: PidModel, search: dict[str, Any], most: int
) -> None:
    """BART forces the first token where there is no prompt, and the end token at the limit."""
    tokenizer = text_model.tokenizer
    assert tokenizer is not None
    start, end = tokenizer.convert_tokens_to_ids(["n", "</s>"])
    forced = {"forced_bos_token_id": start, "forced_eos_token_id": end, "eos_token_id": end}
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": start, "decoder_start_token_id": end}
    bart = models.build({**VARIANTS["bart"], **sizes, **forced})
    model = PidModel(bart, models.init_params(bart, jax.random.key(0)), tokenizer)
    pattern = "[a-m]{2,30}"
    [[after_prompt, first, free]] = model.generate(
        ["a hotel"],
        [["area", "", ""]],
        allowed=[[pid_jax.Regex(pattern), pid_jax.Regex(pattern), None]],
        max_new_tokens=most,
        **search,
    )
    assert re.fullmatch(pattern, str(after_prompt.text))
    assert re.fullmatch(pattern, str(first.text))
    assert free.tokens[0] == start
    assert max(len(one.tokens) for one in (after_prompt, first, free)) < most


def test_a_pattern_has_the_least_number_of_tokens(text_model: PidModel) -> None:
    """The end token is likeliest by far, and the pattern would allow it after two letters."""

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
    with pytest.raises(UserError, match=r"allowed\[0\]\[0\]: the shortest match of .* takes"):
        text_model.generate(
            ["a"], [["b"]], allowed=[[pid_jax.Regex("[a-z]{40}")]], max_new_tokens=3
        )


def test_patterns_apply_to_each_prompt_of_a_stream(text_model: PidModel, checkpoint: Path) -> None:
    document, prompts = "a hotel", ["area", "price"]
    done = {
        partial.prompt: partial.generation
        for partial in text_model.stream(
            [document], [prompts], allowed=[[pid_jax.Regex("[a-z]{3}"), None]], max_new_tokens=8
        )
        if partial.done
    }
    assert done.keys() == {0, 1}
    assert re.fullmatch("[a-z]{3}", str(done[0].text))
    tokenizer = text_model.tokenizer
    assert tokenizer is not None
    ids = tokenizer(document)["input_ids"], tokenizer(prompts[1], add_special_tokens=False)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(checkpoint).eval()
    free = transformers_models.greedy(theirs, ids[0], ids[1]["input_ids"], max_new_tokens=8)
    assert done[1].tokens == free

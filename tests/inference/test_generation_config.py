"""A checkpoint's generation_config.json: the defaults of `generate`, and exports have it too."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import pytest
import transformers

from pid_jax import models
from pid_jax.decoding.options import GenerationOptions
from pid_jax.errors import UserError
from pid_jax.inference.generation_defaults import GenerationDefaults
from pid_jax.inference.model import PidModel
from pid_jax.inference.request import Method
from tests.helpers import bart_checkpoints, transformers_models

DOCUMENTS = [[*range(2, 25)], [40, 41, 42, 43, 44, 45, 46, 1]]
PROMPTS = [[[3, 4, 5], [], [9]], [[], [60, 61, 62, 63, 64]]]

BART_LARGE_CNN: dict[str, Any] = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "length_penalty": 2.0,
    "max_length": 142,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "pad_token_id": 1,
    "transformers_version": "4.27.0.dev0",
}
TOKENS = {"bos_token_id": 95, "decoder_start_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
LIKE_CNN = {
    **BART_LARGE_CNN,
    **TOKENS,
    "forced_bos_token_id": 95,
    "forced_eos_token_id": 1,
    "max_length": 16,
    "min_length": 7,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[5], [90, 91], [1]],
    "suppress_tokens": [17, 33],
    "begin_suppress_tokens": [21],
    "num_assistant_tokens": 20,
}
"""The same, for a small model and short outputs, and with what no published BART has."""
T5 = models.config_from_hf({"model_type": "t5", "vocab_size": 64})


def of(content: dict[str, Any], config: Any = T5, **options: Any) -> GenerationDefaults:
    return GenerationDefaults(content, config, **options)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    bart_checkpoints.make("Bart", directory, seed=3)
    (directory / "generation_config.json").write_text(json.dumps(LIKE_CNN))
    return directory


@pytest.fixture(scope="module")
def pair(directory: Path) -> tuple[Any, PidModel]:
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    return theirs, PidModel.from_pretrained(directory)


def tokens(answers: Any) -> list[list[list[int]]]:
    return [[answer.tokens for answer in row] for row in answers]


def test_bart_large_cnns_are_the_defaults() -> None:
    options = of(BART_LARGE_CNN).options_with({})
    assert (options.num_beams, options.length_penalty, options.early_stopping) == (4, 2.0, True)
    assert options.no_repeat_ngram_size == 3
    # The start token counts to transformers.
    assert (options.max_new_tokens, options.min_new_tokens) == (141, 55)


def test_outputs_are_those_of_transformers_without_any_option(pair: tuple[Any, PidModel]) -> None:
    """After empty prompts; after others transformers' lengths are those of prompt and answer."""
    theirs, ours = pair
    answers = tokens(ours.generate(DOCUMENTS, [[[]]] * 2))
    expected = [transformers_models.answer(theirs, document, []) for document in DOCUMENTS]
    assert [row[0] for row in answers] == expected
    assert all(5 <= len(answer) <= 15 for answer in expected)


def test_explicit_options_win_those_equal_to_our_defaults_too(pair: tuple[Any, PidModel]) -> None:
    theirs, ours = pair
    for options in (
        {"num_beams": 1, "no_repeat_ngram_size": 0},
        {"num_beams": 4, "length_penalty": 1.0, "early_stopping": False},
        {"num_beams": 2, "suppress_tokens": [], "begin_suppress_tokens": []},
    ):
        lengths = {"max_new_tokens": 9, "min_new_tokens": 2}
        answers = tokens(ours.generate(DOCUMENTS, PROMPTS, **lengths, **options))
        for document, prompts, row in zip(DOCUMENTS, PROMPTS, answers, strict=True):
            for prompt, answer in zip(prompts, row, strict=True):
                expected = transformers_models.answer(
                    theirs, document, prompt, **lengths, **options
                )
                assert answer == expected, (options, prompt)


def test_transformers_answers_the_same_after_a_round_trip(
    pair: tuple[Any, PidModel], tmp_path: Path
) -> None:
    theirs, ours = pair
    ours.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == LIKE_CNN
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    for document in DOCUMENTS:
        expected = transformers_models.answer(theirs, document, [])
        assert transformers_models.answer(again, document, []) == expected
    assert PidModel.from_pretrained(tmp_path).generation_config == LIKE_CNN


def test_an_old_config_json_says_it_too(directory: Path, tmp_path: Path) -> None:
    """Without generation_config.json; `task_specific_params` have no effect in transformers."""
    for file in directory.iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "config.json"
    old = {**LIKE_CNN, "early_stopping": None, "task_specific_params": {"sum": {"num_beams": 2}}}
    del old["_from_model_config"]
    path.write_text(json.dumps(json.loads(path.read_text()) | old))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    ours = PidModel.from_pretrained(tmp_path)
    assert ours.generation_defaults["num_beams"] == theirs.generation_config.num_beams == 4
    for document, [answer] in zip(
        DOCUMENTS, tokens(ours.generate(DOCUMENTS, [[[]]] * 2)), strict=True
    ):
        assert answer == transformers_models.answer(theirs, document, [])
    ours.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again").eval()
    expected = transformers_models.answer(theirs, DOCUMENTS[0], [])
    assert transformers_models.answer(again, DOCUMENTS[0], []) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_beams": 1}, {"length_penalty": 1.0, "early_stopping": False}),
        ({"do_sample": True}, {"num_beams": 1, "do_sample": True, "no_repeat_ngram_size": 3}),
        ({"draft_tokens": 3}, {"num_beams": 1, "no_repeat_ngram_size": 3, "draft_tokens": 3}),
        ({"max_new_tokens": 10}, {"max_new_tokens": 10, "min_new_tokens": 10}),
        ({"num_return_sequences": 4}, {"num_beams": 4, "num_return_sequences": 4}),
        ({"length_penalty": 0.5}, {"num_beams": 4, "length_penalty": 0.5}),
        ({"num_beams": None}, {"num_beams": 4}),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_given_option_yields_to_it(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    options = of(BART_LARGE_CNN).options_with(given)
    assert {name: getattr(options, name) for name in expected} == expected


def test_given_options_that_contradict_each_other_are_refused_as_ever() -> None:
    with pytest.raises(UserError, match="num_beams > 1 and do_sample=True"):
        of(BART_LARGE_CNN).options_with({"num_beams": 2, "do_sample": True})
    with pytest.raises(UserError, match="unknown option beams"):
        of(BART_LARGE_CNN).options_with({"beams": 2})


def test_sampling_defaults_are_those_of_transformers() -> None:
    options = of({"do_sample": True, "temperature": 0.7, "num_beams": 3}).options_with({})
    assert (options.do_sample, options.temperature, options.top_k) == (True, 0.7, 50)
    assert options.num_beams == 1
    options = of({"do_sample": True, "top_p": 0.9, "top_k": 0}).options_with({"do_sample": False})
    assert not options.do_sample


def test_what_is_taken_and_what_is_not_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pid_jax")
    content = BART_LARGE_CNN | {"typical_p": 0.9, "top_h": 0.1, "epsilon_cutoff": 0.0}
    content |= {"use_cache": True, "lang_to_id": {"<|en|>": 3}, "guidance_scale": None}
    defaults = of(content)
    defaults.options_with({})
    defaults.options_with({})
    defaults.options_with({"do_sample": True})
    said = [(record.levelname, record.message) for record in caplog.records]
    assert said[0] == (
        "WARNING",
        "generation_config.json: not supported here: typical_p=0.9, top_h=0.1, "
        "lang_to_id={'<|en|>': 3}",
    )
    assert said[1] == ("INFO", "generation_config.json: without effect here: use_cache=True")
    assert said[2] == (
        "INFO",
        "from generation_config.json: num_beams=4, length_penalty=2.0, early_stopping=True, "
        "no_repeat_ngram_size=3, max_new_tokens=141, min_new_tokens=55",
    )
    assert said[4] == (
        "WARNING",
        "num_beams=4 of generation_config.json is left out: beams do not go with do_sample=True",
    )
    assert len(said) == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_beams": "4"}, '"num_beams": num_beams must be a whole number'),
        (
            {"num_beams": 3, "length_penalty": True},
            '"length_penalty": length_penalty must be a number',
        ),
        ({"bad_words_ids": [5]}, r'"bad_words_ids": bad_words_ids\[0\] must be a list'),
        ({"num_beams": 0}, '"num_beams": num_beams must be at least 1'),
        ({"do_sample": True, "temperature": 0.0}, '"temperature": temperature must be above 0'),
        ({"do_sample": True, "top_k": -1}, '"top_k": top_k must be at least 0'),
        ({"max_length": 2.5}, '"max_length": max_new_tokens must be a whole number'),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_named_with_its_file_where_it_has_an_effect(
    content: dict[str, Any], message: str
) -> None:
    defaults = of(content)
    with pytest.raises(UserError, match=f"generation_config.json: {message}"):
        defaults.options_with({})
    own = {"num_beams": 1, "bad_words_ids": [], "max_new_tokens": 5}
    assert defaults.options_with(own | {"do_sample": False}).max_new_tokens == 5
    if "do_sample" in content:
        assert defaults.options_with({"temperature": 0.5, "top_k": 3}).temperature == 0.5


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"do_sample": False, "temperature": 0.0}, {}),
        ({"temperature": 0}, {}),
        ({"top_p": 0.0}, {}),
        ({"top_k": -1}, {}),
        ({"length_penalty": "2"}, {}),
        (
            {"suppress_tokens": [-1], "begin_suppress_tokens": [5, -1]},
            {"begin_suppress_tokens": (5,)},
        ),
        ({"num_beams": 4.0, "early_stopping": 1}, {"num_beams": 4, "early_stopping": True}),
        ({"num_beams": 4, "early_stopping": 0}, {"num_beams": 4, "early_stopping": False}),
        ({"max_length": 2048.0}, {"max_new_tokens": 2047}),
        ({"max_length": "20", "max_new_tokens": 7}, {"max_new_tokens": 7}),
    ],
    ids=str,
)
def test_values_that_transformers_loads_are_no_error(
    tiny_model: PidModel,
    content: dict[str, Any],
    expected: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    transformers.GenerationConfig.from_dict(dict(content))
    caplog.set_level(logging.INFO, "pid_jax")
    options = of(content).options_with({})
    defaults = dataclasses.asdict(GenerationOptions())
    assert {name: getattr(options, name) for name in defaults} == defaults | expected
    if not expected:
        assert "is left out: it has an effect only with" in caplog.text
    ours = PidModel(tiny_model.model, tiny_model.params, None, content)
    ours.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written.items() >= content.items()


def test_lengths_beyond_the_models_positions_are_cut_to_them() -> None:
    config = models.config_from_hf({"model_type": "bart", "max_position_embeddings": 64})
    assert of({"max_length": 512}, config).options_with({}).max_new_tokens == 64


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_a_checkpoints_length_allows_for_the_longest_prompt(method: Method) -> None:
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1}
    sizes |= {"decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1}
    content = {"model_type": "bart", "vocab_size": 24, "max_position_embeddings": 32}
    bart = models.build({**content, **sizes, **special})
    params = models.init_params(bart, jax.random.key(0))
    ours = PidModel(bart, params, None, {"max_length": 32, "min_length": 32})
    [[short, long]] = tokens(ours.generate([[5, 6]], [[[7], [7, 8]]], method=method))
    assert len(short) == len(long) == (30 if method == "pid" else 31)
    forcing = PidModel(
        models.build({**content, **sizes, **special, "forced_eos_token_id": 1}),
        params,
        None,
        {"max_length": 32, "min_length": 32},
    )
    [cut] = forcing.generate([[5, 6]], [[[7], [7, 8]]], method=method)
    assert [answer.finish_reason for answer in cut] == ["length", "length"]
    if method == "pid":
        with pytest.raises(UserError, match=r"its answer up to 31.*positions for 32"):
            ours.generate([[5, 6]], [[[7, 8]]], max_new_tokens=31)
        with pytest.raises(UserError, match="has 32 tokens and its answer up to 1,"):
            ours.generate([[5, 6]], [[[7] * 32]])


def test_the_largest_files_key_wins_as_in_transformers() -> None:
    content = {"max_length": 20, "max_new_tokens": 7, "min_length": 5, "min_new_tokens": 2}
    options = of(content).options_with({})
    assert (options.max_new_tokens, options.min_new_tokens) == (7, 2)


def test_a_stream_of_such_a_checkpoint_is_greedy(
    pair: tuple[Any, PidModel], caplog: pytest.LogCaptureFixture
) -> None:
    _, ours = pair
    parts = list(ours.stream(DOCUMENTS[:1], [[[]]], every=4))
    assert "num_beams=4 of generation_config.json is left out" in caplog.text
    [[greedy]] = ours.generate(DOCUMENTS[:1], [[[]]], num_beams=1)
    assert parts[-1].generation == greedy
    with pytest.raises(UserError, match="stream yields one growing output"):
        list(ours.stream(DOCUMENTS[:1], [[[]]], num_beams=4))


def test_a_least_length_does_not_empty_a_list_of_allowed_outputs(
    pair: tuple[Any, PidModel],
) -> None:
    _, ours = pair
    [[answer]] = ours.generate(DOCUMENTS[:1], [[[9]]], allowed=[[[[20, 21], [22]]]])
    assert answer.tokens in ([20, 21], [22])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"draft_tokens": 2}], ids=str)
def test_a_least_length_holds_for_prompts_without_a_list(
    varied_model: PidModel, options: dict[str, Any]
) -> None:
    content = {"min_new_tokens": 8, "max_new_tokens": 12}
    ours = PidModel(varied_model.model, varied_model.params, None, content)
    documents, free = [[5, 6, 7, 8, 9, 10]], [[3, 4, 5, 6], [9], [8, 2]]
    [alone] = tokens(ours.generate(documents, [free], **options))
    allowed = [[None, None, None, [[20, 21], [22]]]]
    [[*beside, limited]] = tokens(
        ours.generate(documents, [[*free, [9]]], allowed=allowed, **options)
    )
    assert beside == alone
    assert limited in ([20, 21], [22])


def test_scores_and_warming_up_heed_it(pair: tuple[Any, PidModel]) -> None:
    _, ours = pair
    [[score]] = ours.score(DOCUMENTS[:1], [[[3]]], [[[17, 5, 1]]])
    assert score < 0
    fresh = PidModel(ours.model, ours.params, None, ours.generation_config)
    compiled = len(fresh.warm_up(23, 1, 0, compact=False).compilations)
    fresh.generate(DOCUMENTS[:1], [[[]]], compact=False)
    assert len(fresh.programs.compilations) == compiled


def test_a_model_without_weights_of_a_checkpoint_has_no_defaults(tiny_model: PidModel) -> None:
    assert tiny_model.generation_config == tiny_model.generation_defaults == {}

"""What is barred from outputs, and options at their extremes, against transformers' `generate`."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from pid_jax.inference.model import PidModel
from tests.helpers import bart_checkpoints, t5_checkpoints, transformers_models

DOCUMENTS = [[*range(2, 18)], [11, 2, 11, 2, 1]]
PROMPTS = [[[3, 4, 5], []], [[8, 2, 3], [6]]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PidModel]:
    """Few tokens, so that words repeat; some outputs end early."""
    directory = tmp_path_factory.mktemp("checkpoint")
    sizes = {"vocab_size": 24, "num_layers": 1, "num_decoder_layers": 2}
    theirs = t5_checkpoints.make(directory, end_weight=0.4, tie_word_embeddings=True, **sizes)
    return theirs, PidModel.from_pretrained(directory)


def assert_equal_transformers(pair: tuple[Any, PidModel], **options: Any) -> list[list[int]]:
    """Ours as a batch, theirs one by one; returns the outputs."""
    theirs, ours = pair
    outputs = []
    options = {"max_new_tokens": 12, **options}
    their_options = {k: v for k, v in options.items() if k != "draft_tokens"}
    answers = ours.generate(DOCUMENTS, PROMPTS, **options)
    for document, prompts, row in zip(DOCUMENTS, PROMPTS, answers, strict=True):
        for prompt, answer in zip(prompts, row, strict=True):
            expected = transformers_models.answer(theirs, document, prompt, **their_options)
            assert answer.tokens == expected, (prompt, options)
            assert not math.isnan(answer.score)
            outputs.append(answer.tokens)
    return outputs


def often(outputs: list[list[int]]) -> list[int]:
    """Tokens of these outputs, most frequent first."""
    tokens = [token for output in outputs for token in output]
    return sorted(set(tokens), key=lambda token: -tokens.count(token))


WAYS = [{}, {"draft_tokens": 3}, {"num_beams": 3}]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_suppressed_tokens_do_not_come(pair: tuple[Any, PidModel], way: dict[str, Any]) -> None:
    plain = assert_equal_transformers(pair, **way)
    barred = often(plain)[:2]
    outputs = assert_equal_transformers(pair, suppress_tokens=barred, **way)
    assert not {token for output in outputs for token in output} & set(barred)
    firsts = sorted({output[0] for output in plain if output})
    outputs = assert_equal_transformers(pair, begin_suppress_tokens=firsts, **way)
    assert not {output[0] for output in outputs if output} & set(firsts)
    assert {token for output in outputs for token in output} & set(firsts)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_words_are_not_completed(pair: tuple[Any, PidModel], way: dict[str, Any]) -> None:
    plain = assert_equal_transformers(pair, **way)
    pairs = sorted({pair for output in plain for pair in itertools.pairwise(output)})
    triples = sorted({tuple(output[i : i + 3]) for output in plain for i in range(len(output) - 2)})
    for words in (
        [list(word) for word in pairs[:4]],
        [list(word) for word in triples[:3]] + [[often(plain)[0]], [1]],
    ):
        outputs = assert_equal_transformers(pair, bad_words_ids=words, **way)
        assert outputs != plain
        for output, word in itertools.product(outputs, words):
            size = len(word)
            assert all(output[i : i + size] != word for i in range(len(output) - size + 1))


def test_other_words_compile_nothing(pair: tuple[Any, PidModel]) -> None:
    _, ours = pair
    options = {"max_new_tokens": 12, "compact": False}
    ours.generate(
        DOCUMENTS,
        PROMPTS,
        bad_words_ids=[[3, 4]],
        suppress_tokens=[5],
        begin_suppress_tokens=[6, 7],
        **options,
    )
    compiled = len(ours.programs.compilations)
    ours.generate(
        DOCUMENTS,
        PROMPTS,
        bad_words_ids=[[7, 8, 9], [5], [6, 7]],
        suppress_tokens=[2, 3],
        begin_suppress_tokens=[9],
        **options,
    )
    assert len(ours.programs.compilations) == compiled


SINGLE: dict[str, list[Any]] = {
    "min_new_tokens": [5],
    "repetition_penalty": [1.4, 0.7],
    "no_repeat_ngram_size": [2],
    "suppress_tokens": [[4, 7, 1]],
    "begin_suppress_tokens": [[3, 5, 9, 1]],
    "bad_words_ids": [[[5], [2, 3], [6, 7, 8], [1]]],
    "num_beams": [3],
}
PAIRS = [
    {a: x, b: y} for a, b in itertools.combinations(SINGLE, 2) for x in SINGLE[a] for y in SINGLE[b]
]


@pytest.mark.parametrize("options", PAIRS, ids=str)
def test_options_in_pairs_equal_transformers(
    pair: tuple[Any, PidModel], options: dict[str, Any]
) -> None:
    assert_equal_transformers(pair, **options)


def test_a_forced_first_token_moves_the_first_position(tmp_path: Path) -> None:
    """BART: after an empty prompt the second token is the first that is chosen."""
    theirs = bart_checkpoints.make("Bart", tmp_path, seed=3, forced_bos_token_id=95)
    pair = theirs, PidModel.from_pretrained(tmp_path)
    firsts = [o[1] for o in assert_equal_transformers(pair) if o[:1] == [95]]
    assert firsts
    for way in WAYS:
        assert_equal_transformers(pair, begin_suppress_tokens=[95, *firsts], **way)


def test_everything_barred_gives_what_transformers_gives(pair: tuple[Any, PidModel]) -> None:
    everything = list(range(24))
    assert_equal_transformers(pair, suppress_tokens=everything)
    outputs = assert_equal_transformers(pair, suppress_tokens=everything, num_beams=3)
    assert outputs == [[]] * 4
    [[first]] = pair[1].generate(
        DOCUMENTS[:1],
        [[[3]]],
        max_new_tokens=12,
        suppress_tokens=everything,
        num_beams=3,
        num_return_sequences=3,
    )
    assert (first.tokens, first.score, first.alternatives) == ([], -1e9, ())


@pytest.mark.parametrize("length_penalty", [300.0, -300.0, 1e300, -1e300])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_any_length_penalty_finds_outputs(
    pair: tuple[Any, PidModel], length_penalty: float, early_stopping: Any
) -> None:
    """transformers has no output below the rank -1e9, but a sequence that has not ended."""
    _, ours = pair
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    answers = ours.generate(DOCUMENTS, PROMPTS, max_new_tokens=12, num_beams=3, **options)
    for row in answers:
        for answer in row:
            assert -1e6 < answer.score < 0


@pytest.mark.parametrize("length_penalty", [-4.0, 30.0])
def test_large_length_penalties_are_those_of_transformers(
    pair: tuple[Any, PidModel], length_penalty: float
) -> None:
    assert_equal_transformers(pair, num_beams=3, length_penalty=length_penalty)


SMALL_AND_LARGE = [1e-300, 1e-45, 1e-30, 1e-10, 1e10, 1e30, 1e300]


@pytest.mark.parametrize("value", SMALL_AND_LARGE)
def test_any_temperature_and_penalty_draws_numbers(
    pair: tuple[Any, PidModel], value: float
) -> None:
    _, ours = pair
    for options in (
        {"temperature": value, "top_p": 0.5, "top_k": 5},
        {"temperature": 1e-10, "repetition_penalty": value, "top_p": 0.5, "top_k": 5},
        {"top_p": min(value, 1.0), "temperature": 1e-10, "bad_words_ids": [[5], [3, 4]]},
    ):
        answers = ours.generate(DOCUMENTS, PROMPTS, max_new_tokens=12, do_sample=True, **options)
        assert all(-1e6 < answer.score < 0 for row in answers for answer in row)
    if value <= 1e-10:
        plain = ours.generate(DOCUMENTS, PROMPTS, max_new_tokens=12)
        cold = ours.generate(
            DOCUMENTS, PROMPTS, max_new_tokens=12, do_sample=True, temperature=value
        )
        assert [[a.tokens for a in row] for row in cold] == [
            [a.tokens for a in row] for row in plain
        ]
    for num_beams in (1, 3):
        answers = ours.generate(
            DOCUMENTS, PROMPTS, max_new_tokens=12, repetition_penalty=value, num_beams=num_beams
        )
        assert all(-1e6 < answer.score < 0 for row in answers for answer in row)

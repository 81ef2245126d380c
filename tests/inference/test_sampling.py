"""Sampling through `PidModel.generate`: what is drawn, and what decides it."""

from typing import Any

import numpy as np
import pytest

from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation

DOCUMENTS = [[5, 6, 7, 8, 9, 10], [11, 2, 11, 2], [20, 3, 19, 4]]
PROMPTS = [[[3, 4, 5, 6], [9], [9]], [[8, 2, 3, 4], [], [6]], [[6, 7, 8, 9], [3, 20], []]]


def tokens(answers: list[list[Generation]]) -> list[list[list[int]]]:
    return [[generation.tokens for generation in row] for row in answers]


def sample(model: PidModel, documents: Any = DOCUMENTS, prompts: Any = PROMPTS, **options: Any):
    return model.generate(
        documents, prompts, **{"max_new_tokens": 12, "do_sample": True, "seed": 3, **options}
    )


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_what_is_drawn_depends_on_neither_batch_mates_nor_order(
    varied_model: PidModel, method: str
) -> None:
    batched = tokens(sample(varied_model, method=method))
    backwards = sample(
        varied_model,
        DOCUMENTS[::-1],
        [row[::-1] for row in PROMPTS[::-1]],
        batch_size=1,
        method=method,
    )
    assert [row[::-1] for row in tokens(backwards)[::-1]] == batched
    assert batched == tokens(sample(varied_model, method=method))


def test_seeds_documents_and_prompts_draw_differently(varied_model: PidModel) -> None:
    one = tokens(sample(varied_model))
    other = tokens(sample(varied_model, seed=4))
    assert one != other
    # The same prompt of the same document draws the same.
    assert one[0][1] == one[0][2]
    assert one[0][0] != one[0][1]
    [[first], [second]] = tokens(sample(varied_model, [[5, 6, 7], [5, 6, 8]], [[[9]], [[9]]]))
    assert first != second


def test_more_samples_are_alternatives(varied_model: PidModel) -> None:
    single = tokens(sample(varied_model))
    for method in ("pid", "pie"):
        answers = sample(varied_model, num_return_sequences=3, method=method)
        if method == "pid":
            assert tokens(answers) == single
        drawn = [[first, *first.alternatives] for row in answers for first in row]
        assert {len(of_prompt) for of_prompt in drawn} == {3}
        distinct = [len({tuple(one.tokens) for one in of_prompt}) for of_prompt in drawn]
        assert np.mean(distinct) > 2


def test_the_score_is_the_models_own_whatever_shapes_the_draw(varied_model: PidModel) -> None:
    answers = sample(varied_model, temperature=0.4, top_k=6, top_p=0.9, repetition_penalty=1.5)
    targets = [
        [[*one.tokens, *([1] if len(one.tokens) < 12 else [])] for one in row] for row in answers
    ]
    scores = varied_model.score(DOCUMENTS, PROMPTS, targets)
    for row, expected in zip(answers, scores, strict=True):
        assert [one.score for one in row] == pytest.approx(expected, abs=1e-4)


def test_the_narrowest_choice_is_greedy(varied_model: PidModel) -> None:
    greedy = tokens(varied_model.generate(DOCUMENTS, PROMPTS, max_new_tokens=12))
    assert tokens(sample(varied_model, top_k=1)) == greedy
    assert tokens(sample(varied_model, top_p=1e-6)) == greedy


COPIES = 4096
DOCUMENT, PROMPT = [5, 6, 7, 8, 9, 10], [22, 5]


def probabilities(model: PidModel, outputs: list[list[int]]) -> np.ndarray:
    [scores] = model.score([DOCUMENT], [[PROMPT] * len(outputs)], [outputs])
    return np.exp(np.array(scores, np.float64))


def draws(model: PidModel, max_new_tokens: int, **options: Any) -> list[tuple[int, ...]]:
    """Many samples for one prompt, the end token included."""
    [[first]] = sample(
        model,
        [DOCUMENT],
        [[PROMPT]],
        max_new_tokens=max_new_tokens,
        num_return_sequences=COPIES,
        batch_tokens=10**6,
        compact=False,
        **options,
    )
    return [
        tuple(one.tokens) + (1,) * (len(one.tokens) < max_new_tokens)
        for one in (first, *first.alternatives)
    ]


def surprise(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's chi-squared as a number of standard deviations above what chance makes it.

    Outcomes expected fewer than 8 times are counted as one.
    """
    rare = expected < 8
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    assert freedom > 1
    return float((chi_squared - freedom) / np.sqrt(2 * freedom))


def test_two_tokens_are_drawn_as_often_as_the_model_says(varied_model: PidModel) -> None:
    vocabulary = range(varied_model.config.vocab_size)
    outputs = [
        [1],
        *([first, second] for first in vocabulary if first != 1 for second in vocabulary),
    ]
    expected = probabilities(varied_model, outputs)
    assert expected.sum() == pytest.approx(1, abs=1e-4)
    drawn = draws(varied_model, max_new_tokens=2)
    counts = np.array([drawn.count(tuple(output)) for output in outputs])
    assert counts.sum() == COPIES
    assert surprise(counts, COPIES * expected) < 4
    # The test would see a distribution that is only slightly wrong.
    warmer = expected**0.8
    assert surprise(counts, COPIES * warmer / warmer.sum()) > 4


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.7), (2.0, 0.7), (0.5, 0.95)], ids=str)
def test_temperature_top_k_and_top_p_shape_the_distribution_in_this_order(
    varied_model: PidModel, temperature: float, top_p: float
) -> None:
    expected = probabilities(varied_model, [[i] for i in range(varied_model.config.vocab_size)])
    expected = expected ** (1 / temperature)
    order = np.argsort(-expected)
    expected[order[8:]] = 0
    expected /= expected.sum()
    before = np.cumsum(expected[order]) - expected[order]
    expected[order[before >= top_p]] = 0
    expected /= expected.sum()
    options = {"temperature": temperature, "top_k": 8, "top_p": top_p}
    drawn = draws(varied_model, max_new_tokens=1, **options)
    counts = np.array([drawn.count((i,)) for i in range(len(expected))])
    assert counts.sum() == COPIES
    assert (counts[expected == 0] == 0).all()
    assert surprise(counts, COPIES * expected) < 4

"""Plain decoding of many prompts, a comparison of answers, and lists of allowed outputs."""

from typing import Any, NamedTuple

import numpy as np

from pid_jax.decoding.report import DecodingReport
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation

NEW_TOKENS, PROMPTS = 12, 10
Answers = list[list[Generation]]


class Cases(NamedTuple):
    documents: list[list[int]]
    prompts: list[list[list[int]]]

    def some(self, count: int) -> "Cases":
        return Cases(self.documents[:count], self.prompts[:count])


def generate(model: PidModel, cases: Cases, **options: Any) -> tuple[Answers, DecodingReport]:
    report = DecodingReport()
    options = {"max_new_tokens": NEW_TOKENS, "batch_size": 4, "report": report, **options}
    return model.generate(*cases, **options), report


def plain(model: PidModel, cases: Cases, **options: Any) -> Answers:
    return generate(model, cases, compact=False, **options)[0]


def assert_same(answers: Answers, expected: Answers) -> None:
    """Tokens are identical; other shapes round differently, hence a tolerance for scores."""

    def flat(answers: Answers) -> list[Generation]:
        return [one for row in answers for first in row for one in (first, *first.alternatives)]

    assert [one.tokens for one in flat(answers)] == [one.tokens for one in flat(expected)]
    scores = [[one.score for one in flat(some)] for some in (answers, expected)]
    np.testing.assert_allclose(*scores, atol=1e-4)


def lists(cases: Cases) -> list[list[list[list[int]] | None]]:
    """For two prompts of three a list of outputs, many with the same first tokens."""
    random = np.random.default_rng(1)
    first_tokens = random.integers(2, 24, size=(40, 5))
    choices = [
        [row[: random.integers(1, 6)].tolist() + [7] * int(random.integers(3)) for row in some]
        for some in np.split(first_tokens, 4)
    ]
    return [
        [None if (i + j) % 3 == 0 else choices[(i + j) % 4] for j in range(len(row))]
        for i, row in enumerate(cases.prompts)
    ]

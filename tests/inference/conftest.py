"""What the tests of inference share."""

import numpy as np
import pytest

from pid_jax.inference import batch_decoder
from pid_jax.inference.model import PidModel
from tests.helpers.many_prompts import Answers, Cases, plain


@pytest.fixture(scope="session")
def cases(varied_model: PidModel) -> Cases:
    """1,000 prompts of 100 documents that hold what some of their prompts are answered with."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return random.integers(2, varied_model.config.vocab_size, size=count).tolist()

    documents = [tokens(random.integers(3, 13)) for _ in range(100)]
    # One prompt has 4 tokens, so that all batches have one shape.
    prompts = [[tokens(4), *(tokens(random.integers(5)) for _ in range(9))] for _ in documents]
    answers = plain(varied_model, Cases(documents, prompts))
    quoting = [
        [*document, *(token for generation in row for token in generation.tokens)][:32]
        for document, row in zip(documents, answers, strict=True)
    ]
    return Cases(quoting, prompts)


@pytest.fixture(scope="session")
def expected(varied_model: PidModel, cases: Cases) -> Answers:
    return plain(varied_model, cases)


@pytest.fixture(params=[True, False], ids=["on the host", "on the device"])
def gathers_on_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Where prompts are moved: on the host on a CPU, by a program on accelerators."""
    monkeypatch.setattr(batch_decoder, "_gathers_on_host", lambda platform: request.param)
    return bool(request.param)

"""Two batches at a time, as an accelerator runs them, against one at a time."""

import threading
from typing import Any

import jax
import pytest

from pid_jax.inference.batch_decoder import BatchDecoder
from pid_jax.inference.model import PidModel
from tests.helpers.many_prompts import Answers, Cases, assert_same, generate, plain


@pytest.fixture
def two_workers(varied_model: PidModel, monkeypatch: pytest.MonkeyPatch) -> PidModel:
    """The model with an executor that takes the device for an accelerator. Nothing else does."""
    model = PidModel(varied_model.model, varied_model.params)
    with monkeypatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: "gpu")
        assert len(model._executor) == 1  # made here
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"compact": True}, {"draft_tokens": 3}, {"num_beams": 3, "num_return_sequences": 3}],
    ids=str,
)
def test_two_workers_give_the_answers_of_one(
    varied_model: PidModel,
    two_workers: PidModel,
    cases: Cases,
    expected: Answers,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    """The first two batches wait for one another: they are decoded by two threads."""
    decode, barrier = BatchDecoder.decode, threading.Barrier(2)
    threads: list[int] = []

    def decode_beside_another(decoder: BatchDecoder, *arguments: Any) -> Any:
        threads.append(threading.get_ident())
        if len(threads) <= 2:
            barrier.wait(60)
        return decode(decoder, *arguments)

    some = cases.some(24)
    one_at_a_time = (
        plain(varied_model, some, **options) if "num_beams" in options else expected[:24]
    )
    monkeypatch.setattr(BatchDecoder, "decode", decode_beside_another)
    seconds: list[float] = []
    finished: list[float] = []

    def after_batch(documents: float, passed: float) -> None:
        finished.append(documents)
        seconds.append(passed)

    answers, report = generate(two_workers, some, after_batch=after_batch, **options)
    assert_same(answers, one_at_a_time)
    assert (report.batches, report.documents, report.prompts) == (6, 24, 240)
    assert sum(finished) == pytest.approx(24)
    assert min(seconds) > 0
    assert len(threads) == 6
    assert len(set(threads)) == 2
    assert threading.get_ident() not in threads

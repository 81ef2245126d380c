"""What the command proposes for a program that does not fit."""

import pytest

from pid_jax import models
from pid_jax.compile_ahead import report, targets
from pid_jax.compile_ahead.compilation import Compiled
from pid_jax.compile_ahead.programs import ProgramRequest
from pid_jax.data.batching import BatchShape
from pid_jax.training import config as configuration
from tests.helpers.tiny_t5 import TINY


def remedies(program: str, weights: str | None = None) -> list[str]:
    request = ProgramRequest(
        target=targets.parse("v5e"),
        program=program,
        config=models.config_from_hf(TINY),
        shape=BatchShape(8, 128, 4, 8, 16),
        weights=weights,
        training=configuration.default(),
    )
    refused = Compiled(request, None, 20 << 30, 0, 0, 1, 30 << 30, 16 << 30)
    return [remedy.split(":")[0] for remedy in report.remedies(refused)]


@pytest.mark.parametrize("program", ["prefill", "decode", "score"])
def test_inference_that_does_not_fit_can_have_weights_in_8_bits(program: str) -> None:
    assert "--weights=int8" in remedies(program)
    assert "--weights=int8" not in remedies(program, "int8")


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_training_has_no_weights_in_8_bits(program: str) -> None:
    assert "--weights=int8" not in remedies(program)

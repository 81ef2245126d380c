"""The JSON of compiled requests, and the table of its keys in the documentation."""

import dataclasses
import re
from typing import Any

import pytest

from pid_jax import models
from pid_jax.compile_ahead import report
from pid_jax.compile_ahead.compilation import Compiled
from pid_jax.compile_ahead.estimate import Memory, ProgramEstimate, Work
from pid_jax.compile_ahead.programs import NAMES, TRAINING, ProgramRequest
from pid_jax.compile_ahead.targets import parse
from pid_jax.data.batching import BatchShape
from pid_jax.training import config as configuration
from tests.helpers.pages import ROOT
from tests.helpers.tiny_t5 import TINY

ESTIMATE = ProgramEstimate(
    name="program",
    parts={"feed-forward": Work(3, 100, 1000)},
    outside={"copies": Work(1, 10, 20)},
    kinds={"fusion": 3},
    collectives={},
    memory=Memory(8, 4, 4, 2),
    flops=500,
)


def figures(
    program: str, *, estimate: ProgramEstimate | None = ESTIMATE, weights: str | None = None
) -> dict[str, Any]:
    """The JSON of a program in bfloat16, with some values other than the defaults."""
    overrides = ["--config.train.remat=full", "--config.model.scan_layers=True"]
    training = configuration.with_overrides(configuration.default(), overrides, "the test")
    request = ProgramRequest(
        target=parse("v5e"),
        program=program,
        config=models.config_from_hf(TINY),
        shape=BatchShape(8, 512, 30, 9, 16),
        dtype="bfloat16",
        weights=weights,
        training=training,
    )
    return report.to_json(Compiled(request, estimate, 1, 0, 500, 1, 20, 10))


@pytest.mark.parametrize("program", TRAINING)
def test_training_has_parameters_in_float32_and_its_settings(program: str) -> None:
    written = figures(program)
    assert (written["dtype"], written["weights"]) == ("bfloat16", "float32")
    assert (written["remat"], written["scan_layers"]) == ("full", True)
    assert written["rows"] * written["row_tokens"] >= 30 * (8 + 16)  # packed, by default


@pytest.mark.parametrize("program", sorted(NAMES.keys() - set(TRAINING)))
@pytest.mark.parametrize(("weights", "expected"), [(None, "bfloat16"), ("int8", "int8")])
def test_inference_has_the_dtype_of_weights_and_no_settings_of_training(
    program: str, weights: str | None, expected: str
) -> None:
    written = figures(program, weights=weights)
    assert (written["dtype"], written["weights"]) == ("bfloat16", expected)
    assert not written.keys() & {"remat", "scan_layers"}


def test_the_documentation_has_every_key_of_the_json() -> None:
    page = (ROOT / "docs/compile_ahead.md").read_text("utf-8")
    section = page.partition("\n## Output for programs\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    documented = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    unreadable = dataclasses.replace(ESTIMATE, unreadable="the reason")
    written = [
        figures(program, estimate=estimate)
        for program in ("train", "decode")
        for estimate in (ESTIMATE, unreadable, None)
    ]
    assert documented == set().union(*written)

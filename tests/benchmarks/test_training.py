"""The training benchmark, at a size that takes seconds."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import training

TINY = ["--workload=tiny", "--repeats=3"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_all_engines_have_one_loss_for_each_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*TINY, "--no-memory", f"--output={tmp_path}", f"--cache={tmp_path}"]
    assert training.main(options) == 0
    result = json.loads((tmp_path / "training.json").read_text())
    engines = result["engines"]
    assert engines.keys() == set(training.ENGINE_NAMES)
    losses = {name: one["loss_without_dropout"] for name, one in engines.items()}
    for method in ("pid", "pie"):
        assert losses[f"pid_jax-{method}"] == pytest.approx(
            losses[f"transformers-{method}"], rel=1e-4
        )
    assert all(len(one["seconds"]) == 3 for one in engines.values())
    assert engines[training.REFERENCE]["ratio"] == 1.0
    assert "documents/s" in capsys.readouterr().out


def test_losses_that_differ_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert training._agree({"pid_jax-pid": 9.0, "transformers-pid": 9.001, "pid_jax-pie": 8.0})
    assert not training._agree({"pid_jax-pid": 9.0, "transformers-pid": 9.1})
    assert "the losses differ" in capsys.readouterr().err


def test_a_process_measures_its_own_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.main([*TINY, "--alone=pid_jax-pid", f"--cache={tmp_path}"]) == 0
    peak = json.loads(capsys.readouterr().out)["peak_bytes"]
    assert peak == pytest.approx(training._peak_of_process(), rel=0.1)

"""The command, at a size that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import inference, machine
from benchmarks.engines import ENGINES

ROOT = Path(__file__).parents[2]
SUMMARY = {"median", "min", "max", "seconds", "variant", "warm_up_seconds"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that are no rates, found at once."""
    measure, best = machine.measure, machine._best
    monkeypatch.setattr(machine, "_best", lambda trial: best(trial, seconds=0))
    monkeypatch.setattr(
        machine, "measure", lambda dtype: measure(dtype, matrices=(64,), mebibytes=1)
    )


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    status = inference.main([*arguments, f"--output={folder / 'out'}", f"--cache={folder}"])
    return status, json.loads((folder / "out" / "inference.json").read_text())


@pytest.mark.slow
def test_the_command_times_compares_and_writes(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """With whatever engines are installed: the others are left out by name."""
    status, found = run(
        tmp_path,
        "--workloads",
        "tiny",
        "--repeats=3",
        "--growth=tiny",
        "--growth-prompts",
        "1",
        "2",
    )
    assert status == 0
    assert found["schema"] == 1
    assert found["dtype"] == "float32"
    assert found["machine"]["cores"] >= 1
    assert max(found["rates"]["flops_per_second"].values()) > 0

    (entry,) = found["workloads"]
    assert entry["engines"].keys() | entry["left_out"].keys() == ENGINES.keys()
    for measured in entry["engines"].values():
        assert measured.keys() == SUMMARY | {"ratio", "fraction_of_limit"}
        assert len(measured["seconds"]) == 3
    assert entry["engines"]["pid_jax-pid"]["ratio"] == 1.0
    assert entry["limits"]["pid"]["total"] < entry["limits"]["pie"]["total"]
    for pair in entry["agreement"]:
        assert pair["agree"] in (True, None), pair
    assert [point["prompts"] for point in found["growth"]["points"]] == [1, 2]

    shown = capsys.readouterr().out
    assert "tiny: t5-tiny, 2 × 24 tokens" in shown
    assert "PiE / PiD" in shown


def test_what_is_not_installed_is_left_out_with_a_hint(
    tmp_path: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("ctranslate2", "torch", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    engines = ["ctranslate2", "transformers-pid", "pid_jax-pid"]
    status, found = run(tmp_path, "--workloads", "tiny", "--repeats=1", "--engines", *engines)
    (entry,) = found["workloads"]
    assert status == 0
    assert entry["engines"].keys() == {"pid_jax-pid"}
    for key in ("ctranslate2", "transformers-pid"):
        assert "pip install -r requirements-benchmarks.txt" in entry["left_out"][key]
    assert "no chart: matplotlib" in capsys.readouterr().out


def test_the_engines_that_can_be_named_are_those_there_are() -> None:
    assert set(inference.ENGINE_NAMES) == ENGINES.keys()


def test_it_runs_as_a_script_from_the_repository_root() -> None:
    command = [sys.executable, "benchmarks/inference.py", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "note_batched" in shown.stdout

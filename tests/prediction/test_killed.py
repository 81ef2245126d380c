"""The command in processes of its own: killed, or with nobody who reads what it writes."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pid_jax.atomic_file import partial_path
from tests.helpers import tiny_checkpoint
from tests.helpers.predict_command import ids_in
from tests.helpers.questions import question


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process compiles is found by the next."""
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}


@pytest.mark.slow
def test_a_closed_standard_output_is_one_sentence(
    checkpoint: Path, questions: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pid_jax.predict", f"--checkpoint={checkpoint}"]
    process = subprocess.Popen(
        [*command, f"--input={questions}", "--output=-", "--max-new-tokens=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=100) == 2
    assert "error: standard output was closed before all was written" in error
    assert "Traceback" not in error
    assert "Exception ignored" not in error


@pytest.mark.slow
def test_killed_five_times_the_output_is_complete_in_order_and_each_once(
    checkpoint: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    documents = int(os.environ.get("PID_JAX_KILLED_DOCUMENTS", "60"))
    words = (tiny_checkpoint.__doc__ or "").split()
    chance = random.Random()
    questions, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with questions.open("w") as file:
        for number in range(documents):
            text = " ".join(chance.choices(words, k=chance.randint(1, 8)))
            file.write(json.dumps(question(number) | {"document": text}) + "\n")

    def start(output: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pid_jax.predict"),
                *(f"--checkpoint={checkpoint}", f"--input={questions}", f"--output={output}"),
                *("--max-new-tokens=16", f"--write-every={max(2, documents // 40)}"),
            ],
            env=environment,
        )

    assert start(tmp_path / "whole.jsonl").wait(timeout=1000) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert ids_in(tmp_path / "whole.jsonl") == [f"d{number}" for number in range(documents)]

    left = []
    for kill in range(5):
        # At any moment: while it starts, or at a random line of what this attempt writes.
        process = start(output)
        if kill == 0:
            time.sleep(chance.uniform(0, 3))
        wanted = chance.uniform(kill / 5, (kill + 0.8) / 5) * len(whole) if kill else 0
        while partial_size(output) < wanted and process.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        assert process.wait() == -9, "it ended before it could be killed"
        assert not output.exists()
        left.append(partial_size(output))
        if left[-1]:
            assert_same_start(partial_path(output).read_bytes(), whole)
    assert start(output).wait(timeout=1000) == 0
    assert_same_start(output.read_bytes(), whole)
    assert output.read_bytes().count(b"\n") == whole.count(b"\n")
    assert not list(tmp_path.glob("*.partial*"))
    print(f"{documents} documents, {len(whole)} bytes; killed with {left} bytes written")


def assert_same_start(part: bytes, whole: bytes) -> None:
    """The same lines and answers. Scores may round differently: a process that has compiled other
    shapes before pads its batches otherwise."""
    lines = part.splitlines()
    for line, expected in zip(lines, whole.splitlines()[: len(lines)], strict=True):
        ours, theirs = json.loads(line), json.loads(expected)
        for one, other in zip(ours["subtasks"], theirs["subtasks"], strict=True):
            assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-3)
        assert ours == theirs


def partial_size(output: Path) -> int:
    try:
        return partial_path(output).stat().st_size
    except FileNotFoundError:
        return 0

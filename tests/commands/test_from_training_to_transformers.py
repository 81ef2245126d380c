"""From a user's own JSON lines to a scored, answering and exported model, by the four commands.

The commands run as users run them, without the settings that let tests compile quickly.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.quick_compilation import users_environment

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue")


def example(number: int) -> dict[str, Any]:
    colour, shape = COLOURS[number % 3], ("circle", "square")[number % 2]
    return {
        "id": f"d{number}",
        "document": f"there is a {colour} {shape} on the table",
        "subtasks": [
            {"id": "colour", "prompt": "which colour ?", "target": colour},
            {"id": "shape", "prompt": "which shape ?", "target": shape},
        ],
    }


def run(*command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
        env=users_environment(),
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


@pytest.mark.slow
def test_own_data_from_training_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What one command compiles is found by the next, and by nobody else.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    data, workdir = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for split, numbers in (("train", 60), ("validation", 6), ("test", 6)):
        lines = [json.dumps(example(number)) + "\n" for number in range(numbers)]
        (data / f"{split}.jsonl").write_text("".join(lines))
    config = [
        "--config=configs/quickstart.py",
        "--config.data.task=jsonl",
        f"--config.data.path={data}",
    ]
    run(
        "train.py",
        *config,
        f"--workdir={workdir}",
        "--config.train.steps=60",
        "--config.optimizer.warmup_steps=10",
        "--config.optimizer.learning_rate=0.01",
        "--config.train.dropout_rate=0.0",
        "--config.model.architecture.d_model=32",
        "--config.model.architecture.d_kv=16",
        "--config.model.architecture.d_ff=64",
        "--config.model.architecture.num_heads=2",
        "--config.model.architecture.num_layers=1",
        "--config.model.architecture.num_decoder_layers=1",
    )

    printed = run("eval.py", *config, f"--checkpoint={workdir}", f"--output={tmp_path / 'test'}")
    assert "exact_match" in printed.stdout
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert metrics["metrics"]["exact_match"] == 1.0
    assert metrics["baseline"] is None

    exported = tmp_path / "exported"
    run("-m", "pid_jax.export", f"--checkpoint={workdir}", f"--output={exported}")
    for checkpoint in (workdir, exported):
        answers = tmp_path / "answers.jsonl"
        run(
            "-m",
            "pid_jax.predict",
            f"--checkpoint={checkpoint}",
            f"--input={data / 'test.jsonl'}",
            f"--output={answers}",
        )
        for line in map(json.loads, answers.read_text().splitlines()):
            for subtask in line["subtasks"]:
                assert subtask["prediction"] == subtask["target"]
                assert -1 < subtask["score"] < 0

    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    document = tokenizer("there is a red square on the table", return_tensors="pt")
    prompt = tokenizer("which colour ?", add_special_tokens=False, return_tensors="pt")
    generated = theirs.generate(
        **document,
        decoder_input_ids=prompt["input_ids"].new_tensor([[0, *prompt["input_ids"][0].tolist()]]),
        max_new_tokens=8,
        do_sample=False,
    )
    answer = generated[0, 1 + prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == "red"

"""`python -m pid_jax.predict` and the batches behind it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pid_jax.model import PidModel
from pid_jax.predict import main
from tests import tiny_checkpoint

LINES = [
    {
        "id": "short",
        "document": "[user] a hotel",
        "note": {"kept": [1, 2]},
        "subtasks": [
            {"id": "area", "prompt": "hotel-area"},
            {"id": "stars", "prompt": "hotel-stars", "target": "4", "weight": 0.5},
        ],
    },
    {
        "id": "long",
        "document": "[user] i want a cheap hotel in the north with parking , é",
        "subtasks": [{"id": "name", "prompt": "hotel-name"}],
    },
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.write(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return path


def run(checkpoint: Path, questions: Path, output: Path, *options: str) -> list[dict[str, Any]]:
    main([f"--checkpoint={checkpoint}", f"--input={questions}", f"--output={output}", *options])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_every_subtask_gains_what_the_model_generates(
    checkpoint: Path, questions: Path, tmp_path: Path, method: str
) -> None:
    lines = run(
        checkpoint, questions, tmp_path / "out.jsonl", f"--method={method}", "--max-new-tokens=4"
    )

    model = PidModel.from_pretrained(checkpoint)
    for line in lines:
        document, prompts = line["document"], [subtask["prompt"] for subtask in line["subtasks"]]
        [expected] = model.generate([document], [prompts], max_new_tokens=4, method=method)
        assert [s["prediction"] for s in line["subtasks"]] == [answer.text for answer in expected]
        assert [s["score"] for s in line["subtasks"]] == pytest.approx(
            [answer.score for answer in expected], abs=1e-4
        )


def test_lines_keep_their_order_and_whatever_else_they_hold(
    checkpoint: Path, questions: Path, tmp_path: Path
) -> None:
    lines = run(checkpoint, questions, tmp_path / "out.jsonl", "--max-new-tokens=2")
    for line in lines:
        for subtask in line["subtasks"]:
            del subtask["prediction"], subtask["score"]
    assert lines == LINES


def test_the_input_may_be_the_output(checkpoint: Path, questions: Path) -> None:
    lines = run(checkpoint, questions, questions, "--max-new-tokens=2")
    assert [line["id"] for line in lines] == ["short", "long"]
    assert "prediction" in lines[0]["subtasks"][0]


def test_a_bad_line_is_named_and_the_old_output_stays(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("old\n")
    with questions.open("a") as file:
        file.write('{"id": "third", "document": \n')
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, questions, output)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert f"{questions}:3" in error or ("line 3" in error and str(questions) in error)
    assert output.read_text() == "old\n"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--input=nowhere.jsonl", "nowhere.jsonl"),
        ("--checkpoint=./nowhere", "nowhere"),
        ("--output=.", "it is a directory"),
        ("--batch-size=0", "batch_size must be at least 1"),
        ("--max-new-tokens=0", "max_new_tokens"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    checkpoint: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    expected: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, questions, tmp_path / "out.jsonl", option)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert not (tmp_path / "out.jsonl").exists()


def test_a_checkpoint_without_a_tokenizer_is_refused(
    checkpoint: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(SystemExit):
        run(bare, questions, tmp_path / "out.jsonl")
    assert "no tokenizer" in capsys.readouterr().err

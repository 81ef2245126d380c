"""The command `eval.py`: what it prints and writes, and what it refuses."""

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

import eval as eval_command
from pid_jax import evaluation
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.tasks.dialogue_state import DialogueStateTask
from tests.helpers.scored_predictions import TWO_DIALOGUES, predictions_file


def run_eval(checkpoint: Path, output: Path, *options: str) -> None:
    root = Path(eval_command.__file__).parent
    eval_command.main(
        [
            f"--config={root / 'configs' / 'quickstart.py'}",
            f"--checkpoint={checkpoint}",
            f"--output={output}",
            "--config.data.target_tokens=3",
            *options,
        ]
    )


def test_the_command_scores_the_first_turns_and_names_the_rules(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_eval(checkpoint, tmp_path, "--limit=5")
    printed = capsys.readouterr().out
    for expected in ("joint_goal_accuracy", "slot_accuracy", 'always "none"', "dontcare", "seed 0"):
        assert expected in printed
    assert "metrics.json, predictions.jsonl, report.html" in printed
    assert (tmp_path / "report.html").is_file()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 5
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["split"], metrics["method"]) == ("test", "pid")
    assert metrics["checkpoint"] == str(checkpoint)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--limit=0", "--limit=0"),
        ("--split=dev", "dev"),
        ("--checkpoint=./nowhere", "nowhere"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--config.data.taks=jsonl", "taks"),
        ("--config.data.task=nonsense", "nonsense"),
        ("--config.data.path=nowhere", "nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    expected: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_eval(checkpoint, tmp_path / "out", option)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert not (tmp_path / "out").exists()


def test_a_metric_that_fails_loses_no_answer(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_eval(checkpoint, tmp_path / "whole", "--limit=2")

    def fail(*_: object) -> None:
        raise UserError("no score today")

    monkeypatch.setattr(DialogueStateTask, "score", fail)
    with pytest.raises(SystemExit) as stopped:
        run_eval(checkpoint, tmp_path / "out", "--limit=2")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "error: no score today\nThe answers are not lost: " in error
    [saved] = (tmp_path / "out").iterdir()
    assert saved.read_text() == (tmp_path / "whole" / "predictions.jsonl").read_text()


def test_an_output_that_is_a_file_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run_eval(checkpoint, tmp_path / "out", "--limit=1")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: cannot write to")


def unwritable(**options: Any) -> None:
    """Root may write everywhere: so it is said."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(options["dir"]))


def test_an_output_that_may_not_be_written_is_refused_before_the_work(
    checkpoint: Path,
    tmp_path: Path,
    gold: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("this is the work")

    monkeypatch.setattr(tempfile, "TemporaryFile", unwritable)
    monkeypatch.setattr(PidModel, "from_pretrained", work)
    monkeypatch.setattr(evaluation, "scored", work)
    given = [*TWO_DIALOGUES, f"--predictions={predictions_file(tmp_path, gold)}"]
    for command in (
        lambda: run_eval(checkpoint, tmp_path, "--limit=1"),
        lambda: evaluation.main([*given, f"--output={tmp_path}"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            command()
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error == f"error: cannot write to {tmp_path}: Read-only file system\n"


@pytest.mark.parametrize("space", [True, False])
def test_answers_that_the_disk_has_no_space_for_are_saved_elsewhere(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    space: bool,
) -> None:
    run_eval(checkpoint, tmp_path / "whole", "--limit=2")
    write_text, out, elsewhere = Path.write_text, tmp_path / "out", tmp_path / "elsewhere"

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if space and path.is_relative_to(elsewhere):
            return write_text(path, *arguments, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit) as stopped:
        run_eval(checkpoint, out, "--limit=2")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    sentence = (
        f"error: cannot write {out}: No space left on device; predictions.jsonl was not created"
    )
    assert sentence in error
    saved = [path for path in elsewhere.rglob("*") if path.name == "predictions.jsonl"]
    assert len(saved) == space
    for file in saved:
        assert f"{sentence}\nThe answers are not lost: {file} has them" in error
        assert file.read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    if not space:
        assert "not lost" not in error
        assert list(elsewhere.glob("pid_jax-*")) == []


def test_multiwoz_24_is_read_and_named(
    checkpoint: Path, tmp_path: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = real_data / "multiwoz" / "derived_trade_layout" / "mwz2.4.zip"
    run_eval(
        checkpoint,
        tmp_path,
        "--config.data.task=multiwoz24",
        f"--config.data.path={archive}",
        "--limit=3",
    )
    printed = capsys.readouterr().out
    assert "2.4" in printed
    assert "joint_goal_accuracy" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["documents"], metrics["prompts"]) == (3, 90)

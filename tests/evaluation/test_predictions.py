"""Predictions made elsewhere: how they are read, refused and scored."""

import gzip
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pid_jax import evaluation, scoring, tasks
from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from tests.helpers.scored_predictions import TWO_DIALOGUES, TwoSlots, predictions_file


def test_predictions_made_elsewhere_are_scored_in_any_order(
    tmp_path: Path, gold: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = gold[0]["subtasks"][0]
    wrong["prediction"] = f"not {wrong['prediction']}"
    wrong["score"] = -3
    path = predictions_file(tmp_path, gold[::-1])
    out = tmp_path / "out"
    evaluation.main([*TWO_DIALOGUES, f"--predictions={path}", f"--output={out}"])

    right = (len(gold) - 1) / len(gold)
    printed = capsys.readouterr().out
    assert f"{right:.4f}" in printed
    assert "seed 0" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["metrics"]["joint_goal_accuracy"] == right
    assert (metrics["task"], metrics["predictions"]) == ("synthetic_dst", str(path))
    assert "made elsewhere" in (out / "report.html").read_text(encoding="utf-8")
    first, second = map(json.loads, (out / "predictions.jsonl").read_text().splitlines()[:2])
    assert first["id"] == gold[0]["id"]
    assert first["subtasks"][0]["score"] == -3
    assert "score" not in second["subtasks"][0]


def test_what_an_evaluation_wrote_scores_the_same_again(tmp_path: Path) -> None:
    task = tasks.get("synthetic_dst", test_dialogues=2)
    examples = list(task.examples(None, "test"))
    answers = [[scoring.Answer("none", -0.5)] * len(example.subtasks) for example in examples]
    evaluation.write(tmp_path / "first", scoring.scored(task, examples, answers), {})
    path = tmp_path / "first" / "predictions.jsonl"
    evaluation.main([*TWO_DIALOGUES, f"--predictions={path}", f"--output={tmp_path / 'second'}"])
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "second")
    )
    assert first == {key: value for key, value in second.items() if key in first}
    assert path.read_bytes() == (tmp_path / "second" / "predictions.jsonl").read_bytes()


def missing_example(lines: list[Any]) -> None:
    del lines[1:3]


def missing_subtask(lines: list[Any]) -> None:
    del lines[1]["subtasks"][0]


def unknown_example(lines: list[Any]) -> None:
    lines[1]["id"] = "nobody:0"


def unknown_subtask(lines: list[Any]) -> None:
    lines[1]["subtasks"][2]["id"] = "hotel-colour"


def repeated_example(lines: list[Any]) -> None:
    lines.append(lines[0])


def repeated_subtask(lines: list[Any]) -> None:
    lines[1]["subtasks"].append(lines[1]["subtasks"][0])


def no_prediction(lines: list[Any]) -> None:
    lines[1]["subtasks"][2]["prediction"] = None


def worded_score(lines: list[Any]) -> None:
    lines[1]["subtasks"][2]["score"] = "high"


def list_for_a_line(lines: list[Any]) -> None:
    lines[1] = []


def text_for_a_subtask(lines: list[Any]) -> None:
    lines[1]["subtasks"][2] = "north"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (missing_example, r"mine.jsonl: no predictions for 2 of \d+ examples, .* 'test-00000:1'"),
        (missing_subtask, "line 2, 'test-00000:1': no prediction for the subtask"),
        (unknown_example, "line 2: no example .* 'nobody:0': .* such as 'test-00000:0'"),
        (unknown_subtask, "line 2, 'test-00000:1', subtask 3: .* no subtask .* 'hotel-colour'"),
        (repeated_example, "line \\d+: a second line has the id 'test-00000:0'"),
        (repeated_subtask, "line 2, 'test-00000:1', subtask \\d+: a second subtask"),
        (no_prediction, "line 2, 'test-00000:1', subtask 3, .* must be a string, got null"),
        (worded_score, "line 2, .*subtask 3, .* must be a number, got a string"),
        (list_for_a_line, "line 2: expected an object"),
        (text_for_a_subtask, "line 2, 'test-00000:1', subtask 3: expected an object"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_by_line_and_id(
    tmp_path: Path, gold: list[dict[str, Any]], damage: Callable[[list[Any]], None], expected: str
) -> None:
    examples = list(tasks.get("synthetic_dst", test_dialogues=2).examples(None, "test"))
    damage(gold)
    with pytest.raises(UserError, match=expected):
        evaluation.read_predictions(predictions_file(tmp_path, gold), examples)


def test_predictions_are_read_however_they_were_saved(tmp_path: Path) -> None:
    example = Example("7", "d", (Subtask("1", "p"), Subtask("2", "p")))
    line = '{"id": 7, "subtasks": [{"id": 2, "prediction": "é"}, {"id": "1", "prediction": "👋"}]}'
    path = tmp_path / "mine.jsonl"
    for end in ("", "\n", "\r\n\r\n"):
        for content in ((line + end).encode(), (line + end).encode("utf-8-sig")):
            for saved in (content, gzip.compress(content)):
                path.write_bytes(saved)
                [answers] = evaluation.read_predictions(path, [example])
                assert [answer.text for answer in answers] == ["👋", "é"]
    path.write_bytes(line.encode("utf-16"))
    with pytest.raises(UserError, match=r"mine.jsonl: not UTF-8 but UTF-16"):
        evaluation.read_predictions(path, [example])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{"id": "a", "id": "a", "subtasks": []}', 'line 1: the key "id" occurs twice'),
        ('{"id": "a", "subtasks": [{"id": "q", "prediction": "x", "prediction": "y"}]}', "twice"),
        ('{"id": "a", "subtasks": [{"id": "q", "prediction": "x", "score": 1e400}]}', "finite"),
        ('{"id": "a", "subtasks": [{"id": "q", "prediction": "x", "score": NaN}]}', "finite"),
        ('{"id": 1.5, "subtasks": []}', '"id" must be a string or an integer, got a number'),
    ],
)
def test_predictions_with_two_meanings_or_none_are_refused(
    tmp_path: Path, entry: str, message: str
) -> None:
    (tmp_path / "mine.jsonl").write_text(entry, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        evaluation.read_predictions(
            tmp_path / "mine.jsonl", [Example("a", "d", (Subtask("q", "p"),))]
        )


@pytest.mark.parametrize("damaged", [b'{"id": ', b"\xff\xfe\x00", b"[" * 100_000, b"nonsense\n"])
def test_a_line_that_is_no_json_is_refused_by_number(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\n" + damaged)
    with pytest.raises(UserError, match=r"line 2: not (JSON|UTF-8)"):
        evaluation.read_predictions(path, [Example("a", "b", ())])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--predictions=nowhere.jsonl", "nowhere.jsonl"),
        ("--task=nonsense", "nonsense"),
        ("--option=any_of", "--option=any_of"),
        ("--option=colour=red", "colour"),
        ("--split=dev", "dev"),
        ("--limit=0", "--limit=0"),
        ("--path=nowhere", "nowhere"),
    ],
)
def test_mistakes_in_the_second_command_are_one_sentence_and_status_2(
    tmp_path: Path,
    gold: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    option: str,
    expected: str,
) -> None:
    path = predictions_file(tmp_path, gold)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        evaluation.main([*TWO_DIALOGUES, f"--predictions={path}", f"--output={out}", option])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert not out.exists()


def test_predictions_hold_no_number_that_json_has_not(tmp_path: Path) -> None:
    examples = list(TwoSlots().examples(None, "test"))
    answers = [[scoring.Answer("x", -math.inf) for _ in one.subtasks] for one in examples]
    evaluation.write(tmp_path, scoring.scored(TwoSlots(), examples, answers), {})
    for line in (tmp_path / "predictions.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    row, _ = evaluation.read_predictions(tmp_path / "predictions.jsonl", examples)
    assert {answer.score for answer in row} == {None}


def test_scores_are_written_before_they_are_printed(
    tmp_path: Path, gold: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    mine = predictions_file(tmp_path, gold)
    arguments = [f"--predictions={mine}", "--task=synthetic_dst", "--option=test_dialogues=2"]
    with pytest.raises(BrokenPipeError):
        evaluation.main([*arguments, f"--output={tmp_path / 'scores'}"])
    assert {path.name for path in (tmp_path / "scores").iterdir()} == set(evaluation.FILES)

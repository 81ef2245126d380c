"""Evaluation: every answer generated once, scored by the task, written with its rules."""

import errno
import gzip
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import pytest

import eval as eval_command
from pid_jax import evaluation, scoring, tasks
from pid_jax.data.examples import Example, Subtask
from pid_jax.data.tokenizing import Limits
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation
from pid_jax.tasks.dialogue_state import DialogueStateTask, Slot

LIMITS = Limits(document_tokens=64, prompt_tokens=16, target_tokens=8)


class TwoSlots(DialogueStateTask):
    """Two turns, of which the first mentions nothing."""

    name = "two_slots"
    slots = MappingProxyType({"hotel-area": Slot("area"), "hotel-stars": Slot("stars")})
    data_policy = MappingProxyType({"data": "hand-made"})

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        yield self.example("d:0", "[user] hello", {})
        yield self.example("d:1", "[user] hello [user] north , 4 stars", {"hotel-area": "north"})


class Scripted(PidModel):
    """Answers by prompt; knows only how to turn its prompts back into text."""

    def __init__(self, real: PidModel, answers: Mapping[str, str]) -> None:
        super().__init__(real.model, real.params, real.tokenizer)
        self.answers = answers
        self.calls: list[dict[str, Any]] = []

    def generate(self, documents: Any, prompts: Any, **options: Any) -> list[list[Generation]]:
        self.calls.append({"documents": documents, **options})
        for _ in documents:
            options["after_batch"](1, 0.25)
        return [
            [Generation(self.answers[self.tokenizer.decode(prompt)], [7], -0.5) for prompt in row]
            for row in prompts
        ]


@pytest.fixture
def scripted(text_model: PidModel) -> Scripted:
    return Scripted(text_model, {"hotel-area": "north", "hotel-stars": "none"})


def test_scores_are_the_tasks_beside_those_of_always_saying_none(scripted: Scripted) -> None:
    task = TwoSlots()
    result = evaluation.evaluate(scripted, task, list(task.examples(None, "test")), limits=LIMITS)
    # Turn 0 is {}, predicted north: wrong. Turn 1 is {north}, predicted north: right.
    assert result.report.metrics["joint_goal_accuracy"] == 0.5
    assert result.report.metrics["slot_accuracy"] == 0.75
    assert result.baseline is not None
    assert result.baseline.metrics["joint_goal_accuracy"] == 0.5
    assert result.baseline.metrics["slot_accuracy"] == 0.75


def test_a_subtask_with_a_list_gets_an_answer_of_that_list(text_model: PidModel) -> None:
    allowed = ("yes", "no")
    subtasks = Subtask("listed", "hotel-area", "yes", allowed), Subtask("free", "hotel-area", "yes")
    result = evaluation.evaluate(
        text_model, TwoSlots(), [Example("d", "[user] hello", subtasks)], limits=LIMITS
    )
    [[listed, free]] = result.answers
    assert listed.text in allowed
    assert free.text not in allowed


def test_a_task_without_a_negative_target_has_no_baseline(scripted: Scripted) -> None:
    class Plain(TwoSlots):
        negative_target = None

    task = Plain()
    result = evaluation.evaluate(scripted, task, list(task.examples(None, "test")), limits=LIMITS)
    assert result.baseline is None


def test_generation_gets_the_limits_the_method_and_the_batch_size(scripted: Scripted) -> None:
    task = TwoSlots()
    seen: list[tuple[int, float]] = []
    result = evaluation.evaluate(
        scripted,
        task,
        list(task.examples(None, "test")),
        limits=Limits(document_tokens=5, prompt_tokens=16, target_tokens=8),
        method="pie",
        batch_size=1,
        after_batch=lambda documents, seconds: seen.append((documents, seconds)),
    )
    assert [documents for documents, _ in seen] == [1, 1]
    [call] = scripted.calls
    assert (call["method"], call["batch_size"], call["max_new_tokens"]) == ("pie", 1, 8)
    assert max(len(document) for document in call["documents"]) == 5
    assert result.run is not None
    assert result.run.truncation.documents_cut >= 1
    assert "of 2 documents" in str(result.run.truncation)


def test_lengths_are_tokens_before_anything_is_cut(scripted: Scripted) -> None:
    task = TwoSlots()
    examples = list(task.examples(None, "test"))
    short = Limits(document_tokens=5, prompt_tokens=1, target_tokens=1)
    scripted.answers = {scripted.tokenizer.decode(ids[:1]): "none" for ids in _prompt_ids(scripted)}
    lengths = evaluation.evaluate(scripted, task, examples, limits=short).lengths
    assert lengths.unit == "tokens"
    documents = [len(scripted.tokenizer(example.document)["input_ids"]) for example in examples]
    assert list(lengths.of["documents"]) == documents
    assert min(documents) > 2
    assert list(lengths.of["prompts"]) == [len(ids) for ids in _prompt_ids(scripted)] * 2
    # One token, at the limit: the end token did not come.
    assert list(lengths.of["predictions"]) == [1] * 4


def _prompt_ids(model: PidModel) -> list[list[int]]:
    return [model.tokenizer(slot)["input_ids"][:-1] for slot in TwoSlots.slots]


def test_targets_that_the_tokenizer_changes_and_answers_that_were_cut_are_told(
    text_model: PidModel, caplog: pytest.LogCaptureFixture
) -> None:
    task = TwoSlots()
    subtasks = Subtask("area", "hotel-area", "none"), Subtask("stars", "hotel-stars", "a </s> b")
    result = evaluation.evaluate(
        text_model, task, [Example("d", "[user] hello", subtasks)], limits=LIMITS
    )
    assert "1 of 2 targets change when encoded and decoded" in caplog.text
    assert "the first is 'a </s> b' → 'a   b'" in caplog.text
    told = scoring.summary(result)
    assert told["targets"]["changed"] == 1
    assert told["answers_cut"] == 2
    assert "2 did not end within 8 tokens" in scoring.table(result)


def test_no_examples_and_no_tokenizer_are_errors(scripted: Scripted, text_model: PidModel) -> None:
    task = TwoSlots()
    with pytest.raises(UserError, match="no examples"):
        evaluation.evaluate(scripted, task, [], limits=LIMITS)
    bare = PidModel(text_model.model, text_model.params, None)
    with pytest.raises(UserError, match="no tokenizer"):
        evaluation.evaluate(bare, task, list(task.examples(None, "test")), limits=LIMITS)


def test_the_files_hold_scores_rules_speed_and_every_answer(
    scripted: Scripted, tmp_path: Path
) -> None:
    task = TwoSlots()
    examples = list(task.examples(None, "test"))
    result = evaluation.evaluate(scripted, task, examples, limits=LIMITS)
    evaluation.write(tmp_path / "out", result, {"task": "two_slots", "split": "test"})

    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["task"], metrics["split"]) == ("two_slots", "test")
    assert metrics["metrics"]["slot_accuracy"] == 0.75
    assert metrics["baseline"] == {"always": "none", "metrics": result.baseline.metrics}
    assert metrics["tables"]["accuracy per slot"].keys() == {"hotel-area", "hotel-stars"}
    assert metrics["policy"]["data"] == "hand-made"
    assert set(metrics["policy"]) >= {"none", "dontcare"}
    assert (metrics["documents"], metrics["prompts"]) == (2, 4)
    assert metrics["seconds_per_document"] == 0.25
    assert metrics["versions"].keys() >= {"python", "jax", "flax"}
    assert jax.devices()[0].device_kind in metrics["device"]

    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    second = json.loads(lines[1])
    assert (second["id"], second["document"]) == ("d:1", "[user] hello [user] north , 4 stars")
    assert second["subtasks"] == [
        {"id": slot, "prompt": slot, "target": value, "prediction": value, "score": -0.5}
        for slot, value in (("hotel-area", "north"), ("hotel-stars", "none"))
    ]

    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h1>two_slots, test</h1>" in report
    assert "0.7500" in report


def test_what_no_file_can_hold_is_written_escaped(scripted: Scripted, tmp_path: Path) -> None:
    task = TwoSlots()
    examples = [task.example("d:0", "half a pair: \ud800", {})]
    answers = [[scoring.Answer("none"), scoring.Answer("none")]]
    evaluation.write(tmp_path, scoring.scored(task, examples, answers), {"task": "\udcff"})
    [line] = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["document"] == "half a pair: \ud800"
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["task"] == "\udcff"


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


TWO_DIALOGUES = ("--task=synthetic_dst", "--option", "test_dialogues=2")


@pytest.fixture
def gold() -> list[dict[str, Any]]:
    """The right predictions of two dialogues, in the least that a line must have."""
    task = tasks.get("synthetic_dst", test_dialogues=2)
    return [
        {
            "id": example.id,
            "subtasks": [{"id": one.id, "prediction": one.target} for one in example.subtasks],
        }
        for example in task.examples(None, "test")
    ]


def predictions_file(directory: Path, lines: list[Any]) -> Path:
    path = directory / "mine.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return path


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

"""Evaluation: every answer generated once, scored by the task, written with its rules."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import pytest

import eval as eval_command
from pid_jax import evaluation
from pid_jax.data.examples import Example, Subtask
from pid_jax.data.tokenizing import Limits, TruncationReport
from pid_jax.errors import UserError
from pid_jax.model import PidModel
from pid_jax.outputs import Generation
from pid_jax.tasks import Report
from pid_jax.tasks.dialogue_state import DialogueStateTask, Slot
from tests import tiny_checkpoint

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
            [Generation(self.answers[self.tokenizer.decode(prompt)], [7], -0.5) for prompt in asked]
            for asked in prompts
        ]


@pytest.fixture(scope="module")
def real() -> PidModel:
    return tiny_checkpoint.make()


@pytest.fixture
def scripted(real: PidModel) -> Scripted:
    return Scripted(real, {"hotel-area": "north", "hotel-stars": "none"})


def test_scores_are_the_tasks_beside_those_of_always_saying_none(scripted: Scripted) -> None:
    task = TwoSlots()
    result = evaluation.evaluate(scripted, task, list(task.examples(None, "test")), limits=LIMITS)
    # Turn 0 is {}, predicted north: wrong. Turn 1 is {north}, predicted north: right.
    assert result.report.metrics["joint_goal_accuracy"] == 0.5
    assert result.report.metrics["slot_accuracy"] == 0.75
    assert result.baseline is not None
    assert result.baseline.metrics["joint_goal_accuracy"] == 0.5
    assert result.baseline.metrics["slot_accuracy"] == 0.75


def test_answers_are_held_to_the_list_that_a_subtask_brings(real: PidModel) -> None:
    allowed = ("yes", "no")
    asked = Subtask("held", "hotel-area", "yes", allowed), Subtask("free", "hotel-area", "yes")
    result = evaluation.evaluate(
        real, TwoSlots(), [Example("d", "[user] hello", asked)], limits=LIMITS
    )
    [[held, free]] = result.answers
    assert held.text in allowed
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
    assert result.truncation.documents_cut >= 1
    assert "of 2 documents" in str(result.truncation)


def test_no_examples_and_no_tokenizer_are_errors(scripted: Scripted, real: PidModel) -> None:
    task = TwoSlots()
    with pytest.raises(UserError, match="no examples"):
        evaluation.evaluate(scripted, task, [], limits=LIMITS)
    bare = PidModel(real.model, real.params, None)
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, real: PidModel) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    real.save_pretrained(directory)
    return directory


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


def test_an_output_that_is_a_file_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run_eval(checkpoint, tmp_path / "out", "--limit=1")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: cannot write to")


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


def test_the_table_prints_counts_whole_and_scores_beside_those_of_the_baseline() -> None:
    report = Report({"exact": 60.0, "total": 1045, "own": 0.5})
    result = evaluation.Evaluation(
        examples=[],
        answers=[],
        report=report,
        negative_target="none",
        baseline=Report({"exact": 52.5, "total": 1045}),  # a score of one's own may be undefined
        method="pid",
        seconds=1.0,
        seconds_per_document=0.1,
        truncation=TruncationReport(LIMITS, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    )
    rows = [row.split(maxsplit=1) for row in evaluation.table(result).splitlines()]
    assert ["exact", '60.0000  (always "none": 52.5000)'] in rows
    assert ["total", "1,045"] in rows
    assert ["own", "0.5000"] in rows

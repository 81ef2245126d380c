"""Evaluation: every answer generated once, scored by the task, written with its rules."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from pid_jax import evaluation, scoring
from pid_jax.data.examples import Example, Subtask
from pid_jax.data.tokenizing import Limits
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation
from tests.helpers.scored_predictions import TwoSlots

LIMITS = Limits(document_tokens=64, prompt_tokens=16, target_tokens=8)


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
    always_none = {"joint_goal_accuracy": 0.5, "slot_accuracy": 0.75}
    assert metrics["baseline"] == {"always": "none", "metrics": always_none}
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

"""Answers scored by a task, wherever they come from."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pid_jax import scoring
from pid_jax.data.examples import Example, Subtask
from pid_jax.scoring import Answer
from pid_jax.tasks import Predictions, Report
from tests.helpers import evaluations

EXAMPLES = [Example("d", "one two three", (Subtask("a", "which one ?", "one"), Subtask("b", "?")))]
ANSWERS = [[Answer("one two"), Answer("")]]


class Counting:
    """Scores how many predictions there are, and how many of them are "none"."""

    name = "counting"
    negative_target: str | None = "none"

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        return iter(EXAMPLES)

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        texts = [text for row in predictions.values() for text in row.values()]
        return Report({"nones": float(texts.count("none")), "total": float(1000 * len(texts))})


def test_the_task_scores_answers_under_their_ids_and_the_baseline() -> None:
    found = scoring.scored(Counting(), EXAMPLES, ANSWERS)
    assert found.report.metrics == {"nones": 0, "total": 2000}
    assert found.baseline is not None
    assert found.baseline.metrics == {"nones": 2, "total": 2000}


def test_a_task_without_a_negative_target_has_no_baseline() -> None:
    task = Counting()
    task.negative_target = None
    assert scoring.scored(task, EXAMPLES, ANSWERS).baseline is None


def test_lengths_are_words_unless_they_are_given() -> None:
    lengths = scoring.scored(Counting(), EXAMPLES, ANSWERS).lengths
    assert lengths.unit == "words"
    assert {kind: list(of) for kind, of in lengths.of.items()} == {
        "documents": [3],
        "prompts": [3, 1],
        "targets": [1],
        "predictions": [2, 0],
    }
    given = evaluations.dialogues().lengths
    assert scoring.scored(Counting(), EXAMPLES, ANSWERS, lengths=given).lengths is given


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("f1", 0.5, "0.5000"), ("exact", 50.0, "50.0000"), ("HasAns_total", 5928.0, "5,928")],
)
def test_numbers_of_questions_are_whole(metric: str, value: float, text: str) -> None:
    assert scoring.figure(metric, value) == text


def test_the_table_has_scores_rules_and_speed() -> None:
    rows = [" ".join(row.split()) for row in scoring.table(evaluations.dialogues()).splitlines()]
    assert rows[:4] == [
        "documents 100",
        'joint_goal_accuracy 0.9000 (always "none": 0.0000)',
        'slot_accuracy 0.9500 (always "none": 0.5000)',
        "data hand-made",
    ]
    assert rows[-1] == "speed 0.1250 s per document (pid, median over batches), 12.5 s in all"


def test_what_the_baseline_does_not_have_stands_alone() -> None:
    evaluation = dataclasses.replace(
        evaluations.dialogues(),
        report=Report({"exact": 60.0, "total": 1045, "own": 0.5}),
        baseline=Report({"exact": 52.5, "total": 1045}),  # a score of one's own may be undefined
    )
    rows = [row.split(maxsplit=1) for row in scoring.table(evaluation).splitlines()]
    assert rows[1:4] == [
        ["exact", '60.0000  (always "none": 52.5000)'],
        ["total", "1,045"],
        ["own", "0.5000"],
    ]


def test_of_answers_from_elsewhere_no_speed_is_told() -> None:
    found = scoring.scored(Counting(), EXAMPLES, ANSWERS)
    assert "speed" not in scoring.table(found)
    summary = scoring.summary(found)
    assert not {"seconds", "method", "truncation", "device"} & summary.keys()
    assert (summary["documents"], summary["prompts"]) == (1, 2)
    assert summary["versions"].keys() >= {"python", "jax"}

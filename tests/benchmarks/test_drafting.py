"""The task of the drafting benchmark, and its figures, with a model that needs no training."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks import copying, drafting, timing
from pid_jax.inference.results import Generation
from pid_jax.tasks import jsonl
from pid_jax.training import config as configuration


def test_targets_stand_in_their_document_once_and_behind_their_prompt() -> None:
    for line in islice(copying.lines("train"), 50):
        names = [subtask["id"] for subtask in line["subtasks"]]
        assert 1 <= len(names) <= 4
        for subtask in line["subtasks"]:
            assert line["document"].count(f"{subtask['prompt']} {subtask['target']} .") == 1


def test_no_word_comes_twice_in_a_document() -> None:
    for line in copying.lines("test"):
        drawn = [word for word in line["document"].split() if word not in ("note", ".")]
        assert len(drawn) == len(set(drawn))
        assert set(drawn) <= set(copying.words())


def test_unseen_answers_have_10_to_25_words() -> None:
    lengths = {
        len(subtask["target"].split())
        for line in copying.lines("test")
        for subtask in line["subtasks"]
    }
    assert lengths == set(range(10, 26))


def test_the_splits_share_no_document() -> None:
    documents = {
        split: {line["document"] for line in copying.lines(split)} for split in copying.DOCUMENTS
    }
    assert {split: len(those) for split, those in documents.items()} == copying.DOCUMENTS
    assert not documents["test"] & (documents["train"] | documents["validation"])


def test_the_run_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "DOCUMENTS", {"train": 3, "validation": 2, "test": 1})
    copying.write(tmp_path)
    for split, number in copying.DOCUMENTS.items():
        assert len(list(jsonl.read(tmp_path / f"{split}.jsonl", require_target=True))) == number
    config = copying.config(tmp_path)
    configuration.check(config)
    assert config.train.steps % config.evaluation.every_steps == 0


class Model:
    """Answers "a b"; with drafts in fewer calls, and with too many drafts wrongly."""

    def generate(self, documents: Any, prompts: Any, **options: Any) -> list[list[Generation]]:
        report, drafts = options["report"], options["draft_tokens"]
        report.tokens, report.decoder_calls = 12, 10 // (drafts + 1)
        report.drafted_tokens, report.accepted_tokens = 2 * drafts, drafts
        tokens = [7] if drafts > 8 else [5, 6]
        return [[Generation("a b", tokens, -1.0) for _ in row] for row in prompts]


LINES = [
    {
        "document": "note q a b . note r c .",
        "subtasks": [
            {"id": "q", "prompt": "note q", "target": "a b"},
            {"id": "r", "prompt": "note r", "target": "c"},
        ],
    }
]


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    measured = drafting.measure(Model(), LINES, 1, (0, 4, 9), repeats=3)  # type: ignore[arg-type]
    return {"documents": 1, "answers": 2, "training_steps": 300, "measured": [measured]}


def test_calls_and_tokens_are_compared_with_those_without_drafts(result: dict[str, Any]) -> None:
    [measured] = result["measured"]
    assert measured["exact_match"] == 0.5
    assert [run["calls_ratio"] for run in measured["runs"]] == [1.0, 0.2, 0.1]
    assert [run["same_tokens"] for run in measured["runs"]] == [True, True, False]
    assert [len(run["seconds"]) for run in measured["runs"]] == [3, 3, 3]
    assert measured["runs"][0]["seconds_ratio"] == 1.0


def test_it_passes_where_tokens_are_the_same_and_calls_halved(result: dict[str, Any]) -> None:
    [measured] = result["measured"]
    assert not drafting.passed(result)
    *measured["runs"], _ = measured["runs"]
    assert drafting.passed(result)
    measured["runs"][1]["calls_ratio"] = 0.51
    assert not drafting.passed(result)


def test_the_table_says_what_was_found(result: dict[str, Any]) -> None:
    title, _, heading, _, none, four, nine = drafting.table(result).splitlines()
    assert "1 unseen documents, 2 answers" in title
    assert heading == "1 at a time: 6.0 tokens an answer, 50.0% exactly right"
    assert none.split()[:4] == ["none", "10", "1.00", "–"]
    assert four.split()[:4] == ["4", "2", "0.20", "50%"]
    assert nine.endswith("OTHERS")

"""The closing table of `make quickstart`."""

import json
from pathlib import Path
from typing import Any

import pytest

from pid_jax.quickstart import last_turns, main, table
from tests.helpers import tiny_checkpoint


def line(example_id: str, document: str, **answers: tuple[str, str]) -> dict[str, Any]:
    return {
        "id": example_id,
        "document": document,
        "subtasks": [
            {"id": slot, "prompt": slot, "target": target, "prediction": prediction, "score": -0.1}
            for slot, (target, prediction) in answers.items()
        ],
    }


NONE = ("none", "none")
LINES = [
    line("a:0", "[user] hello", area=NONE, stars=NONE),
    line(
        "a:1",
        "[user] hello [system] yes ? [user] north",
        area=("north", "north"),
        stars=("none", "4"),
    ),
    line("b:0", "[user] bye", area=NONE, stars=NONE),
]
METRICS = {
    "documents": 3,
    "metrics": {"joint_goal_accuracy": 0.6667, "slot_accuracy": 0.8333},
    "baseline": {
        "always": "none",
        "metrics": {"joint_goal_accuracy": 0.25, "slot_accuracy": 0.5},
    },
}


def test_a_dialogue_is_its_last_turn() -> None:
    assert [line["id"] for line in last_turns(LINES)] == ["a:1", "b:0"]


def test_the_table_has_scores_baseline_speed_export_and_a_dialogue() -> None:
    text = table(METRICS, pid=0.01, pie=0.05, checkpoint=Path("exported"), dialogue=LINES[1])
    rows = [" ".join(row.split()) for row in text.splitlines()]
    assert "joint goal accuracy 0.6667 0.2500" in rows
    assert "slot accuracy 0.8333 0.5000" in rows
    assert "prompt-in-encoder (PiE) 0.0500" in rows
    assert "prompt-in-decoder (PiD) 0.0100 5.0 times faster" in rows
    assert "Exported for transformers: exported" in rows
    assert rows[-6:-3] == ["[user] hello", "[system] yes ?", "[user] north"]
    assert rows[-3:] == ["", "area north", "stars 4 (is none)"]


def test_the_command_times_both_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint.write(tmp_path / "exported")
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in LINES))
    main([f"--evaluation={tmp_path}", f"--checkpoint={checkpoint}"])
    printed = capsys.readouterr().out
    assert "times faster" in printed
    assert "Dialogue a and its predicted state" in printed


def test_without_an_evaluation_it_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([f"--evaluation={tmp_path}", f"--checkpoint={tmp_path}"])
    assert stopped.value.code == 2
    assert "run eval.py first" in capsys.readouterr().err

"""Evaluations made by hand, to be shown."""

import numpy as np

from pid_jax.data.examples import Example, Subtask
from pid_jax.data.tokenizing import Limits, TruncationReport
from pid_jax.scoring import Answer, Evaluation, Lengths, Run
from pid_jax.tasks import Report

HOSTILE = (
    "<script>console.error('run')</script><img src='http://example.com/x.png' "
    "onerror='console.error(1)'/></style></div>\"' ]]> &amp; <!-- \x00\x1b\r\n\ud800 \ufffe \u202e"
)
"""What must be shown as it is, and do nothing."""


def run() -> Run:
    return Run(
        method="pid",
        device="1 x cpu (cpu)",
        seconds=12.5,
        seconds_per_document=0.125,
        truncation=TruncationReport(
            limits=Limits(document_tokens=50, prompt_tokens=8, target_tokens=4),
            documents=100,
            documents_cut=30,
            longest_document=79,
            prompts=200,
            prompts_cut=0,
            longest_prompt=3,
            targets=200,
            targets_cut=0,
            longest_target=3,
        ),
    )


def dialogues(count: int = 100) -> Evaluation:
    """Two slots for each of `count` documents; every tenth document has a wrong one."""
    examples = []
    answers = []
    for number in range(count):
        subtasks = (Subtask("area", "area ?", "north"), Subtask("stars", "stars ?", "none"))
        examples.append(Example(f"d:{number}", f"document {number} in the north", subtasks))
        area = "south" if number % 10 == 0 else "north"
        answers.append([Answer(area, -0.5 - number), Answer("none", -0.01)])
    return Evaluation(
        examples=examples,
        answers=answers,
        report=Report(
            metrics={"joint_goal_accuracy": 0.9, "slot_accuracy": 0.95},
            policy={"data": "hand-made", "none": "absent"},
            tables={"accuracy per slot": {"area": 0.9, "stars": 1.0}},
        ),
        negative_target="none",
        baseline=Report(
            metrics={"joint_goal_accuracy": 0.0, "slot_accuracy": 0.5},
            tables={"accuracy per slot": {"area": 0.0, "stars": 1.0}},
        ),
        lengths=Lengths(
            "tokens",
            {
                "documents": np.arange(count) % 60 + 20,
                "prompts": np.full(2 * count, 3),
                "targets": np.full(2 * count, 2),
                "predictions": np.full(2 * count, 2),
            },
        ),
        run=run(),
    )


def hostile() -> Evaluation:
    """One document; every text there is would break the page if it were not escaped."""
    subtask = Subtask(HOSTILE, HOSTILE, HOSTILE, references=(HOSTILE, f"{HOSTILE} too"))
    return Evaluation(
        examples=[Example(HOSTILE, HOSTILE, (subtask,))],
        answers=[[Answer(f"{HOSTILE} not", -1.0)]],
        report=Report(
            metrics={HOSTILE: 0.5},
            policy={HOSTILE: HOSTILE},
            tables={HOSTILE: {HOSTILE: float("nan")}},
        ),
        negative_target=HOSTILE,
        baseline=Report(metrics={HOSTILE: 0.25}),
        lengths=Lengths("words", {"documents": np.array([0])}),
        run=None,
    )

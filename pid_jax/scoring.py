"""Answers with the scores that a task gives them: as JSON, and as a table for people."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from pid_jax.data.examples import Example
from pid_jax.data.tokenizing import TargetReport, TruncationReport
from pid_jax.tasks import Report, Task

# Distributions whose versions change figures or speed.
_VERSIONED = ("pid_jax", "jax", "jaxlib", "flax", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class Answer:
    """The prediction for a subtask, and the natural logarithm of its probability if known."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Run:
    """How answers were generated."""

    method: str
    device: str
    seconds: float
    """Of generation as a whole, compilation included."""
    seconds_per_document: float
    """Median over batches, in which the few that compile do not show."""
    truncation: TruncationReport
    targets: TargetReport | None = None
    answers_cut: int = 0
    """Answers that did not end within the limit."""


@dataclass(frozen=True)
class Lengths:
    """How long texts are, each one counted, before anything is cut from them.

    `of` has "documents", "prompts", "targets" and "predictions".
    """

    unit: str
    of: Mapping[str, Int[np.ndarray, " texts"]]


@dataclass(frozen=True)
class Evaluation:
    """Answers with their scores. `answers` is nested as `examples` and their subtasks."""

    examples: Sequence[Example]
    answers: Sequence[Sequence[Answer]]
    report: Report
    negative_target: str | None
    """The task's answer for "nothing here", if it has one."""
    baseline: Report | None
    """The score of giving that answer to everything."""
    lengths: Lengths
    run: Run | None
    """None where the answers come from elsewhere."""


def scored(
    task: Task,
    examples: Sequence[Example],
    answers: Sequence[Sequence[Answer]],
    *,
    lengths: Lengths | None = None,
    run: Run | None = None,
) -> Evaluation:
    """Scores `answers` with `task`. By default `lengths` are counted in words."""
    predictions = {
        example.id: {
            subtask.id: answer.text
            for subtask, answer in zip(example.subtasks, example_answers, strict=True)
        }
        for example, example_answers in zip(examples, answers, strict=True)
    }
    return Evaluation(
        examples=examples,
        answers=answers,
        report=task.score(examples, predictions),
        negative_target=task.negative_target,
        baseline=negative_baseline(task, examples),
        lengths=lengths or _in_words(examples, answers),
        run=run,
    )


def negative_baseline(task: Task, examples: Sequence[Example]) -> Report | None:
    """The score of a model that always answers the negative target: what any model must beat."""
    if task.negative_target is None:
        return None
    always = {
        example.id: {subtask.id: task.negative_target for subtask in example.subtasks}
        for example in examples
    }
    return task.score(examples, always)


def _in_words(examples: Sequence[Example], answers: Sequence[Sequence[Answer]]) -> Lengths:
    subtasks = [subtask for example in examples for subtask in example.subtasks]
    texts = {
        "documents": [example.document for example in examples],
        "prompts": [subtask.prompt for subtask in subtasks],
        "targets": [subtask.target for subtask in subtasks if subtask.target is not None],
        "predictions": [answer.text for row in answers for answer in row],
    }
    return Lengths(
        "words", {kind: np.array([len(t.split()) for t in of]) for kind, of in texts.items()}
    )


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json says of an evaluation: scores, the policy they follow, speed, setting."""
    baseline = None
    if evaluation.baseline is not None:
        baseline = {
            "always": evaluation.negative_target,
            "metrics": evaluation.baseline.metrics,
        }
    run = evaluation.run
    generation = (
        {}
        if run is None
        else {
            "truncation": asdict(run.truncation),
            "targets": None if run.targets is None else asdict(run.targets),
            "answers_cut": run.answers_cut,
            "method": run.method,
            "seconds": round(run.seconds, 3),
            "seconds_per_document": round(run.seconds_per_document, 6),
            "device": run.device,
        }
    )
    return {
        "metrics": evaluation.report.metrics,
        "tables": evaluation.report.tables,
        "baseline": baseline,
        "policy": evaluation.report.policy,
        "documents": len(evaluation.examples),
        "prompts": sum(len(example.subtasks) for example in evaluation.examples),
        **generation,
        "versions": versions(),
    }


def table(evaluation: Evaluation) -> str:
    """The scores beside the baseline's, the rules that they follow, and the speed, for people."""
    rows = [
        ("documents", f"{len(evaluation.examples):,}"),
        *((name, _with_baseline(evaluation, name)) for name in evaluation.report.metrics),
        *evaluation.report.policy.items(),
    ]
    if (run := evaluation.run) is not None:
        rows += [
            ("truncation", str(run.truncation)),
            *_losses(run),
            (
                "speed",
                f"{run.seconds_per_document:.4f} s per document ({run.method}, median over "
                f"batches), {run.seconds:.1f} s in all",
            ),
        ]
    width = 2 + max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}{text}" for name, text in rows)


def _losses(run: Run) -> list[tuple[str, str]]:
    """Further reasons for wrong answers, if there are any."""
    rows = []
    if run.targets is not None and run.targets.changed:
        rows.append(("targets", str(run.targets)))
    if run.answers_cut:
        limit = run.truncation.limits.target_tokens
        rows.append(("answers", f"{run.answers_cut:,} did not end within {limit:,} tokens"))
    return rows


def _with_baseline(evaluation: Evaluation, name: str) -> str:
    value = figure(name, evaluation.report.metrics[name])
    baseline = evaluation.baseline
    if is_count(name) or baseline is None or name not in baseline.metrics:
        return value
    always = figure(name, baseline.metrics[name])
    return f'{value}  (always "{evaluation.negative_target}": {always})'


def is_count(metric: str) -> bool:
    """Whether a metric is a number of questions, as in "HasAns_total"."""
    return metric.endswith("total")


def figure(metric: str, value: float) -> str:
    """A metric's value for people."""
    return f"{int(value):,}" if is_count(metric) else f"{value:.4f}"


def versions() -> dict[str, str]:
    """Of Python, this project and what it computes with."""
    installed = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            continue
    return installed

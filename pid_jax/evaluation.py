"""A task's score over a checkpoint: generate every answer, score them, time it."""

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from pid_jax.answering import answered
from pid_jax.atomic_file import replacing
from pid_jax.data.examples import Example
from pid_jax.data.tokenizing import Limits, TokenizedExamples, TruncationReport
from pid_jax.errors import UserError
from pid_jax.inputs import Method
from pid_jax.model import PidModel
from pid_jax.outputs import Generation
from pid_jax.tasks import Report, Task

# Distributions whose versions change figures or speed.
_VERSIONED = ("pid_jax", "jax", "jaxlib", "flax", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `answers` is nested and ordered as `examples` and their subtasks."""

    examples: Sequence[Example]
    answers: Sequence[Sequence[Generation]]
    report: Report
    negative_target: str | None
    """The task's answer for "nothing here", if it has one."""
    baseline: Report | None
    """The score of giving that answer to everything."""
    method: str
    seconds: float
    """Of generation as a whole, compilation included."""
    seconds_per_document: float
    """Median over batches, in which the few that compile do not show."""
    truncation: TruncationReport


def evaluate(
    model: PidModel,
    task: Task,
    examples: Sequence[Example],
    *,
    limits: Limits,
    batch_size: int = 16,
    method: Method = "pid",
    after_batch: Callable[[float, float], None] | None = None,
) -> Evaluation:
    """Generates an answer to every subtask of `examples` and scores them with `task`.

    Documents, prompts and answers are cut at `limits`, the same as in training. `after_batch`
    is called with a batch's number of documents and its seconds. Raises UserError if there is
    nothing to score or no tokenizer to read it with.
    """
    if not examples:
        raise UserError(f"task {task.name}: no examples to evaluate")
    if model.tokenizer is None:
        raise UserError("the checkpoint has no tokenizer: an evaluation needs one to read text")
    tokenized = TokenizedExamples(
        examples, model.tokenizer, limits, end_token_id=model.config.eos_token_id
    )
    per_document: list[float] = []

    def timed(documents: float, seconds: float) -> None:
        per_document.append(seconds / documents)
        if after_batch is not None:
            after_batch(documents, seconds)

    inputs = [tokenized[i] for i in range(len(examples))]
    started = time.perf_counter()
    answers = model.generate(
        [example.document for example in inputs],
        [example.prompts for example in inputs],
        batch_size=batch_size,
        after_batch=timed,
        allowed=_allowed(examples),
        progress=False if after_batch is not None else None,
        max_new_tokens=limits.target_tokens,
        method=method,
    )
    seconds = time.perf_counter() - started
    return Evaluation(
        examples=examples,
        answers=answers,
        report=task.score(examples, _by_id(examples, answers)),
        negative_target=task.negative_target,
        baseline=negative_baseline(task, examples),
        method=method,
        seconds=seconds,
        seconds_per_document=statistics.median(per_document),
        truncation=tokenized.truncation_report(),
    )


def _allowed(examples: Sequence[Example]) -> list[list[tuple[str, ...] | None]] | None:
    """The closed lists of answers, if any subtask has one."""
    lists = [[subtask.allowed for subtask in example.subtasks] for example in examples]
    return lists if any(one is not None for row in lists for one in row) else None


def negative_baseline(task: Task, examples: Sequence[Example]) -> Report | None:
    """The score of a model that always answers the negative target: what any model must beat."""
    if task.negative_target is None:
        return None
    always = {
        example.id: {subtask.id: task.negative_target for subtask in example.subtasks}
        for example in examples
    }
    return task.score(examples, always)


def write(directory: str | Path, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
    """Writes metrics.json and predictions.jsonl, each complete or not at all.

    `about` (task, split, checkpoint, ...) is added to metrics.json.
    """
    directory = Path(directory)
    lines = [
        json.dumps(answered(_line(example), answers), ensure_ascii=False) + "\n"
        for example, answers in zip(evaluation.examples, evaluation.answers, strict=True)
    ]
    with replacing(directory / "predictions.jsonl") as path:
        path.write_text("".join(lines), encoding="utf-8")
    with replacing(directory / "metrics.json") as path:
        content = json.dumps({**about, **summary(evaluation)}, indent=2, ensure_ascii=False)
        path.write_text(content + "\n", encoding="utf-8")


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json says of an evaluation: scores, the policy they follow, speed, setting."""
    baseline = None
    if evaluation.baseline is not None:
        baseline = {
            "always": evaluation.negative_target,
            "metrics": evaluation.baseline.metrics,
        }
    return {
        "metrics": evaluation.report.metrics,
        "tables": evaluation.report.tables,
        "baseline": baseline,
        "policy": evaluation.report.policy,
        "documents": len(evaluation.examples),
        "prompts": sum(len(example.subtasks) for example in evaluation.examples),
        "truncation": asdict(evaluation.truncation),
        "method": evaluation.method,
        "seconds": round(evaluation.seconds, 3),
        "seconds_per_document": round(evaluation.seconds_per_document, 6),
        "device": _device(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def table(evaluation: Evaluation) -> str:
    """The scores beside the baseline's, the rules that they follow, and the speed, for people."""
    rows = [
        ("documents", f"{len(evaluation.examples):,}"),
        *((name, _figure(evaluation, name)) for name in evaluation.report.metrics),
        *evaluation.report.policy.items(),
        ("truncation", str(evaluation.truncation)),
        (
            "speed",
            f"{evaluation.seconds_per_document:.4f} s per document ({evaluation.method}, median "
            f"over batches), {evaluation.seconds:.1f} s in all",
        ),
    ]
    width = 2 + max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}{text}" for name, text in rows)


def _figure(evaluation: Evaluation, name: str) -> str:
    value = evaluation.report.metrics[name]
    if name.endswith("total"):  # of questions
        return f"{int(value):,}"
    if evaluation.baseline is None or name not in evaluation.baseline.metrics:
        return f"{value:.4f}"
    baseline = evaluation.baseline.metrics[name]
    return f'{value:.4f}  (always "{evaluation.negative_target}": {baseline:.4f})'


def _by_id(
    examples: Sequence[Example], answers: Sequence[Sequence[Generation]]
) -> dict[str, dict[str, str]]:
    return {
        example.id: {
            subtask.id: answer.text or ""
            for subtask, answer in zip(example.subtasks, example_answers, strict=True)
        }
        for example, example_answers in zip(examples, answers, strict=True)
    }


def _line(example: Example) -> dict[str, Any]:
    subtasks = [
        {"id": subtask.id, "prompt": subtask.prompt, "target": subtask.target}
        for subtask in example.subtasks
    ]
    return {"id": example.id, "document": example.document, "subtasks": subtasks}


def _device() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            continue
    return versions

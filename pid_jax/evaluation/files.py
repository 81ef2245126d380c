"""The files of an evaluation: metrics.json, predictions.jsonl and report.html."""

from collections.abc import Mapping
from pathlib import Path

from pid_jax import html_report
from pid_jax.atomic_file import replacing
from pid_jax.evaluation.predictions import write_predictions
from pid_jax.json_text import json_text
from pid_jax.scoring import Evaluation, summary

FILES = METRICS, PREDICTIONS, REPORT = ("metrics.json", "predictions.jsonl", "report.html")


def write(directory: str | Path, evaluation: Evaluation, about: Mapping[str, str]) -> None:
    """Writes the three files, each complete or not at all.

    `about` (task, split, checkpoint, ...) is added to metrics.json and report.html.
    """
    directory = Path(directory)
    _write(directory / METRICS, json_text({**about, **summary(evaluation)}, indent=2) + "\n")
    write_predictions(directory / PREDICTIONS, evaluation.examples, evaluation.answers)
    _write(directory / REPORT, html_report.page(evaluation, about))


def _write(path: Path, content: str) -> None:
    with replacing(path) as written:
        written.write_text(content, encoding="utf-8", newline="\n")

"""A source of a few lines, the command that prepares it, and the examples that come back."""

import json
import sys
from pathlib import Path

from pid_jax import tasks
from pid_jax.data import prepared
from pid_jax.data.prepared import PreparedExamples

ROOT = Path(__file__).parent.parent.parent


def line(number, split="train"):
    return {
        "id": f"{split}{number}",
        "document": f"document {number} of {split}",
        "subtasks": [
            {"id": "q", "prompt": "number ?", "target": str(number), "allowed": ["0", str(number)]},
            {"id": "r", "prompt": "split ?", "target": split},
        ],
    }


def write_lines(directory, **splits):
    directory.mkdir(exist_ok=True)
    for split, count in splits.items():
        lines = [json.dumps(line(number, split)) + "\n" for number in range(count)]
        (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory


def examples_in(data_dir, split, task="jsonl", **options):
    task_options = tasks.reading_options(tasks.get(task, **options), options)
    return PreparedExamples(prepared.find(data_dir, task, task_options), split)


def from_source(source, split, task="jsonl"):
    return list(tasks.get(task).examples(source, split))


def command(*arguments):
    return [sys.executable, "-m", "pid_jax.data.prepare", *map(str, arguments)]


def what_is_in(directory):
    return sorted(path.name for path in directory.iterdir())

"""Runs `python -m pid_jax.predict` within this process, with or without a model."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from pid_jax import models
from pid_jax.inference.results import Generation
from pid_jax.predict import main

LINES: list[dict[str, Any]] = [
    {
        "id": "short",
        "document": "[user] a hotel",
        "note": {"extra": [1, 2]},
        "subtasks": [
            {"id": "area", "prompt": "hotel-area"},
            {"id": "stars", "prompt": "hotel-stars", "target": "4", "weight": 0.5},
        ],
    },
    {
        "id": "long",
        "document": "[user] i want a cheap hotel in the north with parking , é",
        "subtasks": [{"id": "name", "prompt": "hotel-name"}],
    },
]


def run(checkpoint: Path, questions: Path, output: Path, *options: str) -> list[dict[str, Any]]:
    main([f"--checkpoint={checkpoint}", f"--input={questions}", f"--output={output}", *options])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


def status_of(run: Callable[[], object]) -> int:
    with pytest.raises(SystemExit) as stopped:
        run()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


class Model:
    config = models.config_from_hf({"model_type": "t5"})
    tokenizer = "some"
    generation_defaults: Mapping[str, Any] = MappingProxyType({})

    def generate(
        self,
        documents: Sequence[str],
        prompts: Sequence[Sequence[str]],
        after_batch: Callable[[float, float], None] | None = None,
        **options: Any,
    ) -> list[list[Generation]]:
        """Answers a document after the other, the last in two batches."""
        parts = [1.0] * (len(documents) - 1) + [0.25, 0.75] if documents else []
        for part in parts:
            if after_batch is not None:
                after_batch(part, 0.5)
        return [
            [Generation(f"{document}, {prompt}", [], -1.5) for prompt in row]
            for document, row in zip(documents, prompts, strict=True)
        ]


def error_in(printed: str) -> str:
    """The error and what follows it; before it there may be progress, on a slow machine."""
    lines = printed.splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if line.startswith("error: "))
    return "".join(lines[at:])

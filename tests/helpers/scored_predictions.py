"""Two turns of one task, and files of predictions made elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pid_jax.data.examples import Example
from pid_jax.tasks.dialogue_state import DialogueStateTask, Slot


class TwoSlots(DialogueStateTask):
    """Two turns, of which the first mentions nothing."""

    name = "two_slots"
    slots = MappingProxyType({"hotel-area": Slot("area"), "hotel-stars": Slot("stars")})
    data_policy = MappingProxyType({"data": "hand-made"})

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        yield self.example("d:0", "[user] hello", {})
        yield self.example("d:1", "[user] hello [user] north , 4 stars", {"hotel-area": "north"})


TWO_DIALOGUES = ("--task=synthetic_dst", "--option", "test_dialogues=2")


def predictions_file(directory: Path, lines: list[Any]) -> Path:
    path = directory / "mine.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return path

"""A task whose answers are quotations of the document, and a small model trained on it.

A document is a few notes, each a name and random words:

    note miru saba teko lifu ... . note goda pelo ... .

The answer to the prompt `note goda` is the words of that note. No word occurs twice in a
document, so each word determines the next one, and a model with a million parameters learns to
quote in 200 steps.
"""

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pid_jax.atomic_file import replacing
from pid_jax.training import config as configuration

NOTES = 4
SHORTEST, LONGEST = 10, 25
"""Minimum and maximum number of words of a note, without its name."""
DOCUMENTS = {"train": 8000, "validation": 64, "test": 64}

_SYLLABLES = [consonant + vowel for consonant, vowel in product("bdfgklmnprst", "aeiou")]


def words() -> list[str]:
    """The vocabulary: 128 words of two syllables, each a single token."""
    pairs = [first + second for first, second in product(_SYLLABLES, repeat=2)]
    return random.Random("words").sample(pairs, 128)


def lines(split: str) -> Iterator[dict[str, Any]]:
    """The split's documents, with a subtask for each note, in the format of JSON lines."""
    chance = random.Random(f"copying {split}")
    vocabulary = words()
    for number in range(DOCUMENTS[split]):
        # The model learns faster from short documents, and generalises to long ones.
        training = split == "train"
        notes_here = chance.randint(1, NOTES) if training else NOTES
        shortest = 1 if training else SHORTEST
        sizes = [1 + chance.randint(shortest, LONGEST) for _ in range(notes_here)]
        drawn = iter(chance.sample(vocabulary, sum(sizes)))
        notes = [[next(drawn) for _ in range(size)] for size in sizes]
        yield {
            "id": f"{split}-{number}",
            "document": " ".join(f"note {' '.join(note)} ." for note in notes),
            "subtasks": [
                {"id": name, "prompt": f"note {name}", "target": " ".join(content)}
                for name, *content in notes
            ],
        }


def write(directory: Path) -> None:
    """Writes train.jsonl, validation.jsonl and test.jsonl, reproducibly."""
    directory.mkdir(parents=True, exist_ok=True)
    for split in DOCUMENTS:
        with replacing(directory / f"{split}.jsonl") as path, path.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(split))


def config(data: Path) -> ConfigDict:
    """The configuration of the run: the quickstart's model and optimizer with this data."""
    config = configuration.default().unlock()
    config.tokenizer.vocab_size = 1024
    config.data.task = "jsonl"
    config.data.path = str(data)
    config.data.document_tokens = 128
    config.data.prompt_tokens = 8
    config.data.target_tokens = 32
    config.data.batch_size = 32
    config.data.max_prompts = NOTES
    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_steps = 100
    config.optimizer.schedule = "cosine"
    config.train.steps = 300
    config.train.dropout_rate = 0.0
    config.train.log_every_steps = 25
    config.evaluation.every_steps = 150
    config.evaluation.batch_size = 32
    config.checkpoint.every_steps = 50
    return config.lock()

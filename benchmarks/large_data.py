"""Start-up time and memory of training against the number of examples.

Generates synthetic documents, tokenizes them to disk, and measures, in a process for each size,
what a run does before its first step: it opens the tokens, checks them, and reads the first batch.
Then it reads batches at random. With tokens in memory the same is measured for the smaller sizes.
"""

import argparse
import collections
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import command
from pid_jax.data.examples import Example, Subtask
from pid_jax.tasks import Report

EXAMPLES = (50_000, 500_000, 5_000_000)
MOST_IN_MEMORY = 500_000
BATCH_SIZE = 32
_WORDS = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ra", "so") for b in ("", "t", "na", "x")
]
_PROMPTS = ("first word", "last word")


@dataclass(frozen=True)
class Documents:
    """A task of generated documents of 4 to 20 words, each with two subtasks."""

    examples_in_split: int = 1000
    name = "documents"
    negative_target = None

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """The documents. Every split but "train" has 256."""
        random_numbers = random.Random(split)
        count = self.examples_in_split if split == "train" else 256
        for number in range(count):
            words = random_numbers.choices(_WORDS, k=random_numbers.randint(4, 20))
            subtasks = (
                Subtask("first", _PROMPTS[0], words[0]),
                Subtask("last", _PROMPTS[1], words[-1]),
            )
            yield Example(f"{split}-{number}", " ".join(words), subtasks)

    def score(self, examples: Sequence[Example], predictions: Any) -> Report:
        """Not needed here."""
        raise NotImplementedError


def config_of(examples: int, tokens: str, cache: Path) -> Any:
    """The configuration of a run on so many examples."""
    from ml_collections import ConfigDict

    from pid_jax.training import config as configuration

    config = configuration.default()
    config.data.task = "benchmarks.large_data:Documents"
    config.data.options = ConfigDict({"examples_in_split": examples})
    config.data.document_tokens, config.data.prompt_tokens = 128, 8
    config.data.target_tokens, config.data.batch_size = 8, BATCH_SIZE
    config.data.tokens, config.data.cache = tokens, str(cache)
    config.tokenizer.vocab_size = 400
    return config


def memory() -> dict[str, float]:
    """The memory of this process in MiB: resident, of it private, and the peak of the former."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident": "VmRSS", "private": "RssAnon", "peak": "VmHWM"}
    return {name: int(fields[field].split()[0]) / 1024 for name, field in names.items()}


class Run:
    """The data of a run before its first step."""

    def __init__(self, config: Any, root: Path, like: "Run | None" = None) -> None:
        """like: a run whose model and tokenizer are taken."""
        from pid_jax.training import assembly, mixed_batches, splits

        data = splits.of_run(config, root)
        if like is None:
            texts = splits.tokenizer_texts(data)
            self.model, _, self.tokenizer = assembly.new_model(config, texts)
        else:
            self.model, self.tokenizer = like.model, like.tokenizer
        [one] = data
        self.train = one.train.tokens(self.model, self.tokenizer).source
        self.validation = one.validation.tokens(self.model, self.tokenizer).source
        self.batches = mixed_batches.training_batches(
            config, [self.train], self.model, self.tokenizer
        )
        self.first = next(self.batches)


def measure(examples: int, tokens: str, root: Path, batches: int) -> dict[str, float]:
    """Start-up and reading of one run. Tokens on disk that are missing are made."""
    cache = root / "cache"
    # First a small run: imports, and the tokenizer, which is the same for all sizes.
    small = Run(config_of(1000, tokens, cache), root)
    before, started = memory(), time.perf_counter()
    run = Run(config_of(examples, tokens, cache), root, like=small)
    seconds, at_start = time.perf_counter() - started, memory()
    collections.deque(itertools.islice(run.batches, batches // 10), maxlen=0)
    rates, cpu_started = [], time.process_time()
    for _ in range(5):
        started = time.perf_counter()
        collections.deque(itertools.islice(run.batches, batches), maxlen=0)
        rates.append(batches / (time.perf_counter() - started))
    cpu_seconds = time.process_time() - cpu_started
    after = memory()
    assert len(run.train) == examples
    return {
        "examples": examples,
        "start_seconds": round(seconds, 3),
        "start_peak_mib": round(at_start["peak"] - before["peak"], 1),
        "start_mib": round(at_start["resident"] - before["resident"], 1),
        "after_reading_mib": round(after["resident"] - before["resident"], 1),
        "after_reading_private_mib": round(after["private"] - before["private"], 1),
        "batches_read": 5 * batches + batches // 10,
        "cpu_ms_per_batch": round(1000 * cpu_seconds / (5 * batches), 3),
        "batches_per_second": round(statistics.median(rates), 1),
        "batches_per_second_least": round(min(rates), 1),
        "batches_per_second_most": round(max(rates), 1),
    }


def in_a_process(examples: int, tokens: str, root: Path, batches: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    done = subprocess.run(
        [
            *(sys.executable, __file__, "--measure", tokens, "--root", str(root)),
            *("--examples", str(examples), "--batches", str(batches)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def tokenizing(examples: int, root: Path) -> dict[str, float]:
    """Seconds and memory of tokenizing to disk. Of tokens that exist, those measured then."""
    measured = root / f"tokenizing_{examples}.json"
    if not measured.exists():
        made = in_a_process(examples, "disk", root, 10)
        figures = {
            "seconds": made["start_seconds"],
            "examples_per_second": round(examples / made["start_seconds"]),
            "peak_mib": made["start_peak_mib"],
        }
        measured.write_text(json.dumps(figures))
    content: dict[str, float] = json.loads(measured.read_text())
    return content


def formats(examples: int, root: Path, reads: int = 20_000) -> dict[str, Any]:
    """Opening and random reads of the records of the training tokens, beside ArrayRecord."""
    from array_record.python import array_record_module

    from pid_jax.data.token_files import StoredTokens

    directories = [path.parent for path in (root / "cache").glob("*-train-*/tokens/index")]
    [tokens] = [one for one in map(StoredTokens, directories) if len(one) == examples]
    file = root / "array_record"
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for start in range(0, examples, 4096):
        for number in range(start, min(start + 4096, examples)):
            writer.write(tokens.record(number))
    writer.close()
    order = np.random.default_rng(0).integers(examples, size=reads).tolist()
    stored = {
        "files": sum((tokens.directory / name).stat().st_size for name in ("index", "records")),
        "array_record": file.stat().st_size,
    }
    openings = {
        "files": lambda: StoredTokens(tokens.directory),
        "array_record": lambda: array_record_module.ArrayRecordReader(
            str(file), "readahead_buffer_size:0"
        ),
    }
    readings = {
        "files": lambda reader, number: reader.record(number),
        "array_record": lambda reader, number: reader.read([number]),
    }
    figures: dict[str, Any] = {"examples": examples}
    for name, opened in openings.items():
        before, started = memory(), time.process_time()
        reader = opened()
        readings[name](reader, 0)
        seconds, after = time.process_time() - started, memory()
        started = time.process_time()
        for number in order:
            readings[name](reader, number)
        figures[name] = {
            "bytes": stored[name],
            "open_cpu_seconds": round(seconds, 4),
            "open_mib": round(after["resident"] - before["resident"], 1),
            "read_cpu_microseconds": round(1e6 * (time.process_time() - started) / reads, 2),
        }
    file.unlink()
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all sizes and writes large_data.json."""
    parser = command.parser("large_data", __doc__.split("\n")[0], "")
    parser.add_argument(
        "--examples",
        nargs="+",
        type=command.positive,
        default=EXAMPLES,
        help=f"default: {' '.join(map(str, EXAMPLES))}",
    )
    parser.add_argument("--batches", type=command.positive, default=2000, help="read and timed")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="tokens on disk stay there (default: deleted)"
    )
    parser.add_argument("--measure", choices=("disk", "memory"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure is not None:
        [examples] = options.examples
        print(json.dumps(measure(examples, options.measure, options.root, options.batches)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        sizes = []
        for examples in options.examples:
            rows: dict[str, Any] = {"examples": examples, "tokenizing": tokenizing(examples, root)}
            rows["disk"] = in_a_process(examples, "disk", root, options.batches)
            if examples <= MOST_IN_MEMORY:
                rows["memory"] = in_a_process(examples, "memory", root, options.batches)
            print(json.dumps(rows), file=sys.stderr)
            sizes.append(rows)
        beside = [formats(examples, root) for examples in options.examples]
    command.write(
        options.output,
        "large_data",
        {**command.origin(), "batch_size": BATCH_SIZE, "sizes": sizes, "formats": beside},
    )


if __name__ == "__main__":
    main()

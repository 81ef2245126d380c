"""Many random calls of `generate` in one process: what stays of them in memory."""

import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pid_jax.inference.model import PidModel
from tests.fuzz import pairs, watchdog


class Usage(NamedTuple):
    """What a process uses after so many calls."""

    calls: int
    programs: int
    maps: int
    """Memory maps; Linux grants a process 65,530."""
    resident_mb: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.calls:6,} calls  {self.programs:6,} programs  {self.maps:7,} maps  "
            f"{self.resident_mb:8,.0f} MB  {self.seconds:7.0f} s"
        )


def call(model: PidModel, random: np.random.Generator) -> None:
    """One call of random sizes, with the options that most people use."""
    documents = int(random.integers(1, 7))
    longest, most, widest = random.integers(1, 300), random.integers(1, 21), random.integers(0, 13)

    def tokens(count: int) -> list[int]:
        return random.integers(pairs.FIRST_TOKEN, pairs.VOCABULARY, count).tolist()

    options: dict[str, Any] = {"max_new_tokens": int(random.integers(1, 25))}
    if random.random() < 0.2:
        options["num_beams"] = int(random.integers(2, 5))
    model.generate(
        [tokens(random.integers(0, longest + 1)) for _ in range(documents)],
        [
            [tokens(random.integers(0, widest + 1)) for _ in range(random.integers(0, most + 1))]
            for _ in range(documents)
        ],
        **options,
    )


def usage(model: PidModel, calls: int, since: float) -> Usage:
    programs: Any = model.programs
    count = len(programs) if hasattr(programs, "__len__") else len(programs.compilations)
    # Linux alone lists the maps; the most that was resident is known elsewhere, too.
    maps = Path("/proc/self/maps")
    lines = len(maps.read_text().splitlines()) if maps.exists() else 0
    status = Path("/proc/self/statm")
    if status.exists():
        resident = int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    else:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return Usage(calls, count, lines, resident, time.perf_counter() - since)


def run(calls: int, seed: int, every: int = 100, seconds: int = 300) -> list[Usage]:
    """Makes so many calls and prints, every so many, what the process uses."""
    model = pairs.of("t5").ours
    random = np.random.default_rng(seed)
    since = time.perf_counter()
    table = []
    for number in range(1, calls + 1):
        with watchdog.limit(seconds):
            call(model, random)
        if number % every == 0 or number == calls:
            table.append(usage(model, number, since))
            print(table[-1], flush=True)
    return table

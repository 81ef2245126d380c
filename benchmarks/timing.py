"""Interleaved timing: one run of each engine, repeatedly, so that load affects all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PAUSE = 0.3
"""Seconds between two engines. Thread pools spin for about this time after their work."""
FEWEST = 3
"""Minimum number of runs of an engine, for a meaningful median."""


@dataclass(slots=True)
class Timed:
    """Times and answers of one engine."""

    variant: str
    """The fastest configuration of the warm-up."""
    warm_up: dict[str, float]
    """Seconds of each configuration's first run, compilation included."""
    answers: Any
    """The result of the last run."""
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "median": statistics.median(self.seconds),
            "min": min(self.seconds),
            "max": max(self.seconds),
            "seconds": self.seconds,
            "variant": self.variant,
            "warm_up_seconds": self.warm_up,
        }


def warm_up(variants: Mapping[str, Callable[[], Any]]) -> tuple[Timed, Callable[[], Any]]:
    """Runs every configuration before the measurement and returns the fastest.

    With several configurations, each runs twice, unless its first run takes 10 seconds, which
    makes compilation negligible.
    """
    first, trials, answers = {}, {}, {}
    for name, run in variants.items():
        first[name], answers[name] = _timed(run)
        trials[name] = first[name]
        if len(variants) > 1 and first[name] < 10:
            trials[name], answers[name] = _timed(run)
    best = min(trials, key=trials.__getitem__)
    return Timed(best, first, answers[best]), variants[best]


def in_turn(
    engines: Mapping[str, tuple[Timed, Callable[[], Any]]], repeats: int, budget: float
) -> None:
    """Times each engine up to `repeats` times, interleaved, and appends to its `seconds`.

    After `FEWEST` runs, an engine stops once it has used `budget` seconds.
    """
    for _ in range(repeats):
        for timed, run in engines.values():
            if len(timed.seconds) >= FEWEST and sum(timed.seconds) >= budget:
                continue
            time.sleep(PAUSE)
            seconds, timed.answers = _timed(run)
            timed.seconds.append(seconds)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answers = run()
    return time.perf_counter() - started, answers

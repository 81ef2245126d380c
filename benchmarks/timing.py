"""Engines timed in turn: one run of each, then again, so that a slow minute slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PAUSE = 0.3
"""Seconds between two engines: thread pools keep spinning for about so long after their work."""
FEWEST = 3
"""Runs of even the slowest engine, so that a median is one."""


@dataclass(slots=True)
class Timed:
    """What one engine took."""

    variant: str
    """The configuration that was fastest in the warm-up."""
    warm_up: dict[str, float]
    """Seconds of each configuration's first run, compilation included."""
    answers: Any
    """What the last run returned."""
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
    """Runs every configuration untimed and returns the fastest.

    Where there is a choice, each runs once more, unless one run takes so long that starting
    costs are lost in it.
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
    """Times each warm engine up to `repeats` times, adding to its `seconds`.

    An engine that has spent `budget` seconds is not run again once it has had `FEWEST` runs.
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

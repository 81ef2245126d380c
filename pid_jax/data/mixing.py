"""Mixtures of streams of batches: which stream has a step, and which of its batches."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from pid_jax.errors import UserError

T = TypeVar("T")

_UNIT = 2**40


class StreamTurn(NamedTuple):
    """Which stream has a step, and the number of its earlier steps."""

    stream: int
    number: int


class Turns:
    """Divides steps among streams by weight, as a pure function of the step.

    Of the first n steps, each stream has its share of n to within the number of streams, for
    every n. The seed draws the phase: averaged over seeds, the shares are exact for every n. Raises
    UserError for weights that are not above 0.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise UserError(f"weights are numbers above 0, not {', '.join(map(str, weights))}")
        self._phases = np.random.default_rng([seed, 2]).integers(_UNIT, size=len(weights)).tolist()
        rest = np.cumsum(weights[::-1])[::-1]
        # The share of each stream in the steps that the streams before it leave.
        shares = [round(float(w / r) * _UNIT) for w, r in zip(weights, rest, strict=True)]
        self._shares = [*shares[:-1], _UNIT]

    def counts(self, steps: int) -> list[int]:
        """How many of the first `steps` steps each stream has."""
        counts = []
        for share, phase in zip(self._shares, self._phases, strict=True):
            counts.append((steps * share + phase) // _UNIT)
            steps -= counts[-1]
        return counts

    def of(self, step: int) -> StreamTurn:
        """The turn at a step."""
        before, after = self.counts(step), self.counts(step + 1)
        [stream] = [i for i, (b, a) in enumerate(zip(before, after, strict=True)) if a > b]
        return StreamTurn(stream, before[stream])


def mixed(streams: Sequence[Callable[[int], T]], turns: Turns) -> Callable[[int], T]:
    """The stream in which every step is the next batch of the stream whose turn it is.

    A stream is a function from the number of a batch to the batch. One stream stays as it is.
    """

    def batch(step: int) -> T:
        turn = turns.of(step)
        return streams[turn.stream](turn.number)

    return batch

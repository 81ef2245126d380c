"""Whether a smaller decode step repays its compilation, from measured seconds.

Each batch tells how long its steps took and when its outputs ended. From that follows how many
seconds a smaller program would have saved it. Once what batches of its kind have lost, and those
still to come are expected to lose, exceeds the seconds that such a program takes to compile, it
is compiled.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.decoding.compaction import count_live, holds

Size = tuple[int, int]
"""Documents, prompts."""


@dataclass
class Run:
    """What one batch did: its decode steps, at which size, in how many seconds."""

    sizes: list[tuple[int, Size]] = field(default_factory=list)
    """The first step at each size, in order."""
    steps: int = 0
    seconds: float = 0.0
    row_steps: int = 0

    def add(self, size: Size, steps: int, seconds: float) -> None:
        """Counts steps at a size."""
        if not self.sizes or self.sizes[-1][1] != size:
            self.sizes.append((self.steps, size))
        self.steps += steps
        self.seconds += seconds
        self.row_steps += steps * size[0] * size[1]

    def rows(self) -> Int[np.ndarray, " steps"]:
        """Documents times prompts at each step."""
        rows = np.zeros(self.steps, np.int64)
        for first, size in self.sizes:
            rows[first:] = size[0] * size[1]
        return rows


@dataclass
class _Losses:
    seconds: float = 0.0
    batches: int = 0


class Savings:
    """What the lack of smaller programs has cost so far, by kind of program."""

    def __init__(self) -> None:
        self._losses: dict[Hashable, _Losses] = {}

    def add(
        self,
        run: Run,
        lengths: Int[np.ndarray, "B P"],
        active: Bool[np.ndarray, "B P"],
        candidates: Sequence[tuple[Hashable, Size]],
    ) -> None:
        """Counts what each candidate would have saved a batch that has ended.

        lengths: the step after which each output had ended. candidates: kinds of programs that
        are not compiled, and their sizes.
        """
        if not run.steps or not run.row_steps:
            return
        ends = np.where(active, lengths, 0)
        live = [count_live(ends <= step + 1) for step in range(run.steps)]
        rows = run.rows()
        for kind, size in candidates:
            fits = np.array([holds(size, one) for one in live])
            fewer = np.where(fits, np.maximum(rows - size[0] * size[1], 0), 0).sum()
            losses = self._losses.setdefault(kind, _Losses())
            losses.batches += 1
            losses.seconds += run.seconds * float(fewer) / run.row_steps

    def repays(self, kind: Hashable, seconds: float, batches_left: int) -> bool:
        """Whether compiling a program of this kind, in so many seconds, is expected to repay."""
        losses = self._losses.get(kind)
        if losses is None:
            return False
        return losses.seconds * (1 + batches_left / losses.batches) > seconds

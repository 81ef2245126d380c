"""When a batch is compacted, and whether a smaller program repays its compilation.

Each batch records how long its steps took and when its outputs finished. That gives the seconds
that a smaller program would have saved it. A smaller program is compiled once the seconds lost by
the batches so far, and those that the batches to come are expected to lose, exceed the seconds of
its compilation.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.decoding.compaction import FEWEST_ROWS, Size, count_active, fits, sizes_below
from pid_jax.inference.decoding_batch import DecodingBatch, Kind


@dataclass
class DecodingRun:
    """The decode steps of one batch, with their sizes and their seconds."""

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


_MOST_KINDS = 1024
"""Kinds of programs to remember. A caller's function that is made anew is a new kind."""


class Savings:
    """The seconds that the lack of smaller programs has cost so far, by kind of program."""

    def __init__(self) -> None:
        self._losses: dict[Hashable, _Losses] = {}

    def add(
        self,
        run: DecodingRun,
        lengths: Int[np.ndarray, "B P"],
        active: Bool[np.ndarray, "B P"],
        candidates: Sequence[tuple[Hashable, Size]],
    ) -> None:
        """Counts what each candidate would have saved a batch that has finished.

        lengths: the step after which each output had finished. candidates: kinds of programs that
        are not compiled, and their sizes.
        """
        if not run.steps or not run.row_steps:
            return
        ends = np.where(active, lengths, 0)
        active_sizes = [count_active(ends <= step + 1) for step in range(run.steps)]
        rows = run.rows()
        for kind, size in candidates:
            possible = np.array([fits(one, size) for one in active_sizes])
            fewer = np.where(possible, np.maximum(rows - size[0] * size[1], 0), 0).sum()
            losses = self._losses.pop(kind, None) or _Losses()
            self._losses[kind] = losses  # the latest last
            losses.batches += 1
            losses.seconds += run.seconds * float(fewer) / run.row_steps

        while len(self._losses) > _MOST_KINDS:
            del self._losses[next(iter(self._losses))]

    def repays(self, kind: Hashable, seconds: float, batches_left: int) -> bool:
        """Whether a program of this kind is expected to save its seconds of compilation."""
        losses = self._losses.get(kind)
        if losses is None or not losses.batches:  # another thread may be about to count
            return False
        return losses.seconds * (1 + batches_left / losses.batches) > seconds


Compiled = Mapping[Hashable, float]
"""The kinds of decoding programs in memory, with their seconds of compilation."""


class CompactionPolicy:
    """Chooses the sizes of smaller batches from what is compiled and what has been measured."""

    def __init__(self) -> None:
        self._savings = Savings()

    def sizes(self, batch: DecodingBatch, size: Size, compiled: Compiled) -> list[Size]:
        """The smaller sizes that a batch of this size may move to."""
        beams = batch.options.search.beams
        if batch.compact is False:
            return []
        if batch.compact is True:
            return sizes_below(size, beams)[1:]
        if math.prod(size) * beams <= FEWEST_ROWS:
            return []
        own = batch.kind(size)
        sizes = [
            kind.size
            for kind in compiled
            if isinstance(kind, Kind) and kind == batch.kind(kind.size)
        ]
        sizes += [
            one
            for one in sizes_below(size, beams)[1:]
            if self._savings.repays(
                batch.kind(one), compiled.get(own, math.inf), batch.batches_left
            )
        ]
        return [one for one in sizes if fits(one, size) and math.prod(one) <= math.prod(size) // 2]

    def target(
        self, batch: DecodingBatch, finished: Bool[np.ndarray, "B1 P1"], compiled: Compiled
    ) -> Size | None:
        """The smallest size for the active prompts of a batch, or None to leave it as it is."""
        active = count_active(finished)
        size = finished.shape[0], finished.shape[1]
        possible = [one for one in self.sizes(batch, size, compiled) if fits(active, one)]
        return min(possible, key=math.prod, default=None)

    def stop_at(
        self, batch: DecodingBatch, finished: Bool[np.ndarray, "B1 P1"], compiled: Compiled
    ) -> Size:
        """When to stop for compaction: at this number of active documents, or of prompts.

        Always fewer than there are, so that at least one step runs.
        """
        documents, prompts = count_active(finished)
        sizes = self.sizes(batch, (finished.shape[0], finished.shape[1]), compiled)
        fewer_prompts = [one[1] for one in sizes if one[0] >= documents and one[1] < prompts]
        fewer_documents = [one[0] for one in sizes if one[0] < documents]
        return max(fewer_documents, default=0), max(fewer_prompts, default=0)

    def record(
        self,
        batch: DecodingBatch,
        run: DecodingRun,
        lengths: Int[np.ndarray, "B P"],
        active: Bool[np.ndarray, "B P"],
        compiled: Compiled,
    ) -> None:
        """Counts what smaller programs would have saved a batch that has finished."""
        if batch.compact != "auto":
            return
        ladder = sizes_below(batch.size, batch.options.search.beams)[1:]
        kinds = [(batch.kind(size), size) for size in ladder]
        missing = [(kind, size) for kind, size in kinds if kind not in compiled]
        self._savings.add(run, lengths, active, missing)

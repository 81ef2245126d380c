"""Which examples and subtasks batch n of training has, and in which order: a function of n."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int

from pid_jax.data import packed_batches
from pid_jax.data.batching import bucket
from pid_jax.data.packed_batches import Drawn
from pid_jax.data.permutation import permuted
from pid_jax.data.token_source import TokenSource
from pid_jax.errors import UserError

SubtasksOf = Callable[[int, int], Int[np.ndarray, " chosen"]]
"""The subtasks of a row of a batch, from the number of the row and the index of its example."""


def drawn_of(indices: Int[np.ndarray, " documents"], subtasks_of: SubtasksOf) -> list[Drawn]:
    """The examples of a batch, each with its subtasks."""
    return [(index, subtasks_of(row, index)) for row, index in enumerate(indices.tolist())]


class TrainingPlan:
    """Draws the examples of batch n and their subtasks."""

    def __init__(
        self,
        source: TokenSource,
        *,
        batch_size: int,
        seed: int,
        max_prompts: int | None,
        negative_target: Sequence[int] | None,
        negative_rate: float,
        window: int,
        document_multiple: int,
    ) -> None:
        _check_trainable(source)
        if not 0 <= negative_rate <= 1:
            raise UserError(f"negative_rate is a probability, from 0 to 1, not {negative_rate}")
        if seed < 0:
            raise UserError(f"seed is at least 0, not {seed}")
        if window < 1:
            raise UserError(f"window is at least 1 batch, not {window}")
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._max_prompts = max_prompts
        self._negative_rate = negative_rate
        # At a rate of 1 nothing is left out, and no target need be read.
        self._negative = negative_target if negative_rate < 1 else None
        self._window = window
        self._document_multiple = document_multiple
        self._steps_per_epoch = -(-len(source) // batch_size)
        self._latest = ((-1, -1), np.zeros((0, batch_size), np.int64))

    def examples(self, step: int) -> Int[np.ndarray, " documents"]:
        """The indices of the examples of a batch."""
        epoch, step_of_epoch = divmod(step, self._steps_per_epoch)
        window, step_of_window = divmod(step_of_epoch, self._window)
        # At the start of a window two threads may compute the same order. The assignment is
        # atomic, so neither reads a partial result.
        latest = self._latest
        if latest[0] != (epoch, window):
            latest = self._latest = ((epoch, window), self._order(epoch, window))
        return latest[1][step_of_window]

    def sampled(self) -> Iterator[list[Drawn]]:
        """The batches of evenly spaced windows of the first epoch, or of the first few epochs.

        Whole windows, because each batch needs the order of its window.
        """
        windows = -(-self._steps_per_epoch // self._window)
        count = max(1, packed_batches.SAMPLED // self._window)
        chosen = np.linspace(0, max(windows, count) - 1, count).astype(int)
        for number in np.unique(chosen).tolist():
            epoch, window = divmod(number, windows)
            first = window * self._window
            last = min(first + self._window, self._steps_per_epoch)
            for step in range(first, last):
                at = epoch * self._steps_per_epoch + step
                yield drawn_of(self.examples(at), functools.partial(self.subtasks, at))

    def _order(self, epoch: int, window: int) -> Int[np.ndarray, "steps documents"]:
        """The indices of the examples of each batch of a window."""
        first = window * self._window
        last = min(first + self._window, self._steps_per_epoch)
        positions = np.arange(first * self._batch_size, last * self._batch_size) % len(self._source)
        order = permuted(positions, len(self._source), [self._seed, 0, epoch])
        lengths = self._source.document_lengths[order].tolist()
        padded = [bucket(length, multiple=self._document_multiple) for length in lengths]
        expected = [self._expected_tokens(index) for index in order.tolist()]
        by_length = np.lexsort((expected, padded))
        random = np.random.default_rng([self._seed, 0, epoch, window])
        return random.permutation(order[by_length].reshape(-1, self._batch_size))

    def _expected_tokens(self, index: int) -> float:
        """The decoder tokens that an example has in a batch on average."""
        count = int(self._source.subtask_counts[index])
        tokens = np.sum(self._source.subtask_lengths(index, np.arange(count)), axis=0)
        included = np.ones(count)
        if self._negative is not None:
            included[self._source.targets_equal(index, self._negative)] = self._negative_rate
        drawn = included.sum()
        most = drawn if self._max_prompts is None else min(drawn, self._max_prompts)
        return float(tokens @ included * most / max(drawn, 1))

    def subtasks(self, step: int, row: int, index: int) -> Int[np.ndarray, " chosen"]:
        """The indices of the subtasks of an example in a row of a batch, ascending."""
        count = int(self._source.subtask_counts[index])
        included = np.arange(count)
        most = count if self._max_prompts is None else self._max_prompts
        if self._negative is None and count <= most:
            return included
        random = np.random.default_rng([self._seed, 1, step, row])
        if self._negative is not None:
            sampled = random.random(count) < self._negative_rate
            included = np.flatnonzero(~self._source.targets_equal(index, self._negative) | sampled)
            if not len(included):
                included = random.integers(count, size=1)
        if len(included) > most:
            drawn = np.argsort(random.random(len(included)))[:most]
            included = included[np.sort(drawn)]
        return included


def _check_trainable(source: TokenSource) -> None:
    known = source.statistics
    if known.without_subtask.count:
        raise UserError(
            f"example {known.without_subtask.first!r} has no subtask, so training cannot use "
            f"it ({known.without_subtask.count} of {known.examples} examples): remove such examples"
        )
    if known.without_target.count:
        raise UserError(
            f"example {known.without_target.first!r} has a subtask without a target "
            f"({known.without_target.count} of {known.subtasks} subtasks): "
            "training needs a target for every subtask"
        )

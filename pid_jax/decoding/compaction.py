"""When a batch gets smaller, and what of it is kept.

After a few steps most prompts of dialogue state tracking have ended with `none`. A step costs
what its batch is wide, so once at most half of the documents have prompts that still run, or
every document at most half of its prompts, those are moved together into a batch half as large:
`smaller` names its size. What is computed for each prompt is the same.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.batching import bucket_below

Compaction = bool | Literal["auto"]

Places = tuple[Int[np.ndarray, " B1"], Int[np.ndarray, "B1 P1"], Bool[np.ndarray, "B1 P1"]]
"""The documents of a batch that are kept, of each the prompts, and which of these are real."""

FEWEST_ROWS = 8
"""Batches of so few rows are not made smaller: a step then costs its weights, not its rows."""


def smaller(size: tuple[int, int], live: tuple[int, int], rows_each: int) -> tuple[int, int] | None:
    """The (documents, prompts) to move a batch of this size to, or None.

    live: how many documents have prompts not done, and how many prompts the document with most
    of them. One axis is halved at a time, to a bucket, documents first; but not where no more
    than `FEWEST_ROWS` would be left to halve. rows_each: a prompt's rows, its beams.
    """
    documents, prompts = size
    if documents * prompts * rows_each <= FEWEST_ROWS:
        return None
    if documents > 1 and live[0] <= bucket_below(documents // 2):
        return bucket_below(documents // 2), prompts
    if prompts > 1 and live[1] <= bucket_below(prompts // 2):
        return documents, bucket_below(prompts // 2)
    return None


def sizes_below(size: tuple[int, int], rows_each: int) -> list[tuple[int, int]]:
    """All sizes that a batch may be moved to, its own first."""
    found = [size]
    for one in found:
        for live in ((1, one[1]), (one[0], 1)):
            another = smaller(one, live, rows_each)
            if another is not None and another not in found:
                found.append(another)
    return found


def holds(size: tuple[int, int], live: tuple[int, int]) -> bool:
    """Whether so many documents, each with so many prompts, have places in this size."""
    return live[0] <= size[0] and live[1] <= size[1]


def count_live(done: Bool[np.ndarray, "B P"]) -> tuple[int, int]:
    """How many documents have prompts not done, and how many the one with most of them."""
    live = ~done
    return int(live.any(axis=1).sum()), int(live.sum(axis=1).max())


def places_of(live: Bool[np.ndarray, "B P"], documents: int, prompts: int) -> Places:
    """Where to find what is live, in order, and which of the places found are."""
    chosen = np.arange(len(live))
    if documents < len(live):
        chosen = np.argsort(~live.any(axis=1), kind="stable")[:documents]
    columns = np.argsort(~live[chosen], axis=1, kind="stable")[:, :prompts]
    return chosen, columns, np.take_along_axis(live[chosen], columns, axis=1)

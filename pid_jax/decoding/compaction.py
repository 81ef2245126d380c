"""Compaction: finished prompts are dropped from a batch, and the rest moves to a smaller one.

After a few steps most prompts of dialogue state tracking have finished with `none`. A step costs
what its batch is wide. Once at most half of the documents have active prompts, or every document
at most half of its prompts, those move to a batch half as large: `smaller` returns its size. What
is computed for each prompt stays the same.
"""

from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.batching import Arr, bucket_below
from pid_jax.decoding.state import State
from pid_jax.prompt_in_decoder import EncodedDocuments

Compaction = bool | Literal["auto"]
Size = tuple[int, int]
"""Documents, and prompts of each."""


class Gather(NamedTuple):
    """Which documents and prompts of a batch the smaller batch consists of."""

    documents: Int[Arr, " B1"]
    prompts: Int[Arr, "B1 P1"]
    """Of each of these documents."""
    active: Bool[Arr, "B1 P1"]
    """False for padding: a prompt that has finished."""


def gather_prompts(state: State, gather: Gather) -> State:
    """The state of some prompts. Those that are not active count as finished."""
    documents, prompts, active = gather
    gathered = jax.tree.map(lambda leaf: leaf[documents[:, None], prompts], state.prompts)
    sequences = gathered.sequences
    sequences = sequences._replace(finished=sequences.finished | ~active)
    return State(state.step, gathered._replace(sequences=sequences))


def gather_documents(encoded: EncodedDocuments, documents: Int[Arr, " B1"]) -> EncodedDocuments:
    """The encodings of some documents."""
    return jax.tree.map(lambda leaf: leaf[documents], encoded)


FEWEST_ROWS = 8
"""Batches of this number of rows are not made smaller: reading the weights dominates a step."""


def smaller(size: Size, active: Size, beams: int) -> Size | None:
    """The size to move a batch to, or None.

    active: the number of documents with active prompts, and the most active prompts of a document.
    One axis is halved at a time, to a bucket, documents first. beams: the rows of a prompt.
    """
    documents, prompts = size
    if documents * prompts * beams <= FEWEST_ROWS:
        return None
    if documents > 1 and active[0] <= bucket_below(documents // 2):
        return bucket_below(documents // 2), prompts
    if prompts > 1 and active[1] <= bucket_below(prompts // 2):
        return documents, bucket_below(prompts // 2)
    return None


def sizes_below(size: Size, beams: int) -> list[Size]:
    """All sizes that a batch may move to, its own first."""
    sizes = [size]
    for one in sizes:
        for active in ((1, one[1]), (one[0], 1)):
            another = smaller(one, active, beams)
            if another is not None and another not in sizes:
                sizes.append(another)
    return sizes


def fits(active: Size, size: Size) -> bool:
    """Whether a batch of this size has space for the active documents and prompts."""
    return active[0] <= size[0] and active[1] <= size[1]


def count_active(finished: Bool[np.ndarray, "B P"]) -> Size:
    """The number of documents with active prompts, and the most active prompts of a document."""
    active = ~finished
    return int(active.any(axis=1).sum()), int(active.sum(axis=1).max())


def gather_of(active: Bool[np.ndarray, "B P"], size: Size) -> Gather:
    """The active documents and prompts in their order, filled up to this size."""
    documents = np.arange(len(active), dtype=np.int32)
    if size[0] < len(active):
        documents = np.argsort(~active.any(axis=1), kind="stable")[: size[0]].astype(np.int32)
    columns = np.argsort(~active[documents], axis=1, kind="stable")[:, : size[1]]
    columns = columns.astype(np.int32)  # as on the device, where another type is another program
    return Gather(documents, columns, np.take_along_axis(active[documents], columns, axis=1))

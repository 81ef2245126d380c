"""A batch as it goes to a device, and its outputs as they come back."""

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from pid_jax.data.batching import Batch, BatchShape
from pid_jax.decoding import token_logprobs
from pid_jax.decoding.automata import Position
from pid_jax.decoding.compaction import Compaction, Size
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.decoding.report import DecodingReport
from pid_jax.decoding.token_logprobs import TokenLogprobs


class Kind(NamedTuple):
    """What a decoding program is compiled for."""

    signature: Hashable
    """Of the options, see `DecodingOptions.signature`."""
    shape: BatchShape

    @property
    def size(self) -> Size:
        """Documents, and prompts of each."""
        return self.shape.documents, self.shape.prompts

    def __str__(self) -> str:
        return str(self.shape)


@dataclass(frozen=True)
class DecodingBatch:
    """One batch on the host, and how its outputs are selected."""

    batch: Batch
    active: Bool[np.ndarray, "B P"]
    """False for the absent prompts of a ragged batch."""
    max_new_tokens: Int[np.ndarray, "B P"]
    shape: BatchShape
    """Its `prompts` are decoded at once, and the batch may have several times as many. Its
    `target_tokens` is the length of the arrays for outputs."""
    options: DecodingOptions
    returned: int = 1
    """Outputs per prompt."""
    start: Position = Position()
    """Of each prompt in the automata, `[B, P]`."""
    keys: UInt32[np.ndarray, "B P 2"] | None = None
    compact: Compaction = "auto"
    batches_left: int = 0
    """Batches of the same call and shape that the same device may expect after this one."""

    @property
    def size(self) -> Size:
        """Documents, and prompts that are decoded at once."""
        return self.shape.documents, self.shape.prompts

    @property
    def max_steps(self) -> int:
        """The steps after which every output has finished, the prefill included."""
        return int(np.where(self.active, self.max_new_tokens, 1).max(initial=1))

    def kind(self, size: Size) -> Kind:
        """What a decoding program is compiled for at this size."""
        shape = replace(self.shape, documents=size[0], prompts=size[1])
        return Kind(self.options.signature(), shape)

    def parts(self) -> Iterator[slice]:
        """The prompts that are decoded at once, part by part."""
        for first in range(0, self.active.shape[1], self.shape.prompts):
            yield slice(first, first + self.shape.prompts)


class Outputs(NamedTuple):
    """The outputs of a batch on the host, the best of each prompt first."""

    tokens: Int[np.ndarray, "B P returned T"]
    lengths: Int[np.ndarray, "B P returned"]
    """The number of selected tokens, the end token included; 0 for no output."""
    scores: Float[np.ndarray, "B P returned"]
    finished: Bool[np.ndarray, "B P"]
    drafted: Int[np.ndarray, "B P"]
    """Tokens that prompt lookup guessed."""
    accepted: Int[np.ndarray, "B P"]
    """Guessed tokens that were right."""
    logprobs: TokenLogprobs | None
    """`[B, P, returned, T]`, where the options ask for them."""
    report: DecodingReport


def no_outputs(batch: DecodingBatch, vocab_size: int) -> Outputs:
    """The arrays before the first token of any prompt."""
    prompts = batch.active.shape
    shape, length = (*prompts, batch.returned), batch.shape.target_tokens
    logprobs = None
    if batch.options.logprobs is not None:
        top = min(batch.options.logprobs, vocab_size)
        logprobs = token_logprobs.empty(shape, top, length, np)
    return Outputs(
        np.zeros((*shape, length), np.int32),
        np.zeros(shape, np.int32),
        np.full(shape, -math.inf, np.float32),
        ~batch.active,
        np.zeros(prompts, np.int32),
        np.zeros(prompts, np.int32),
        logprobs,
        DecodingReport(),
    )

"""Batches: token ids padded to arrays of a few fixed shapes.

Every mask in the project is True at real tokens and False at padding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.token_source import TokenizedExample

Arr = np.ndarray | jax.Array


class RealTokens(NamedTuple):
    """Tokens of a batch without padding."""

    documents: int
    decoder: int
    """Start tokens, prompts, and targets without their last tokens, of subtasks with a target."""


class Batch(NamedTuple):
    """B documents with P prompts each, padded; a pytree of NumPy or JAX arrays.

    An example may have fewer than P prompts, and a batch fewer than B documents. The prompt of an
    absent slot is the decoder start token alone, so that attention has an unmasked input, and its
    target mask is False everywhere. The mask of an absent document is False everywhere.
    """

    documents: Int[Arr, "B S"]  # right-padded
    document_mask: Bool[Arr, "B S"]
    prompts: Int[Arr, "B P L"]  # left-padded: the decoder start token, then the prompt
    prompt_mask: Bool[Arr, "B P L"]
    targets: Int[Arr, "B P T"]  # right-padded, end token included
    target_mask: Bool[Arr, "B P T"]  # True where the loss counts

    @property
    def real_tokens(self) -> "RealTokens":
        """The numbers of tokens that are not padding. For a batch on the host."""
        absent = ~self.target_mask.any(axis=-1)
        decoder = self.prompt_mask.sum() + self.target_mask[..., 1:].sum()
        return RealTokens(
            int(self.document_mask.sum()), int(decoder - self.prompt_mask[absent].sum())
        )

    @property
    def shape(self) -> "BatchShape":
        """The sizes of the arrays, including absent slots."""
        documents, document_tokens = self.documents.shape
        _, prompts, prompt_tokens = self.prompts.shape
        return BatchShape(documents, document_tokens, prompts, prompt_tokens, self.targets.shape[2])


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The five sizes that determine a compiled program."""

    documents: int  # B
    document_tokens: int  # S
    prompts: int  # P
    prompt_tokens: int  # L, the start token included
    target_tokens: int  # T, the end token included

    @property
    def decoder_tokens(self) -> int:
        """The decoder's tokens in a batch, padding included."""
        return self.documents * self.prompts * (self.prompt_tokens + self.target_tokens - 1)

    def __str__(self) -> str:
        return (
            f"{self.documents} documents of {self.document_tokens} tokens, "
            f"{self.prompts} prompts of {self.prompt_tokens}, targets of {self.target_tokens}"
        )


def bucket(size: int, *, multiple: int = 1) -> int:
    """Rounds a size up to a bucket. There are eight buckets per power of two.

    Sizes 1 to 16 are unchanged, 17 to 32 are rounded to multiples of 2, 33 to 64 to multiples of
    4, and so on, so at most an eighth is padding. `multiple`, a power of two, is the smallest
    step. Size 0 becomes the smallest bucket, because arrays must not be empty. Raises ValueError
    for a negative size and for a `multiple` that is no power of two.
    """
    if size < 0:
        raise ValueError(f"a size is at least 0, not {size}")
    if multiple < 1 or multiple & (multiple - 1):
        raise ValueError(f"multiple is a power of two, not {multiple}")
    size = max(size, 1)
    step = max(multiple, 1 << max(size.bit_length() - 4, 0))
    return -(-size // step) * step


def bucket_below(size: int) -> int:
    """The largest bucket of at most `size`, and at least 1."""
    size = max(size, 1)
    step = 1 << max(size.bit_length() - 4, 0)
    return size // step * step


def power_of_two(size: int, at_least: int) -> int:
    """The smallest power of two that is no smaller than either."""
    return max(at_least, 1 << max(size - 1, 0).bit_length())


DOCUMENT_MULTIPLE = 32
"""Smallest bucket step of document lengths, which vary more than those of prompts and targets."""


def shape_of(
    examples: Sequence[TokenizedExample], *, document_multiple: int = DOCUMENT_MULTIPLE
) -> BatchShape:
    """The smallest shape of buckets that fits these examples in one batch."""
    prompts = [prompt for example in examples for prompt in example.prompts]
    targets = [target for example in examples for target in example.targets]
    return BatchShape(
        documents=bucket(len(examples)),
        document_tokens=bucket(
            _longest(example.document for example in examples), multiple=document_multiple
        ),
        prompts=bucket(_longest(example.prompts for example in examples)),
        prompt_tokens=bucket(1 + _longest(prompts)),
        target_tokens=bucket(_longest(targets)),
    )


def collate(
    examples: Sequence[TokenizedExample],
    shape: BatchShape,
    *,
    pad_token_id: int,
    decoder_start_token_id: int,
) -> Batch:
    """Pads the examples to one batch of exactly this shape.

    Row i is `examples[i]`. Further rows are absent documents. Masked positions contain
    `pad_token_id`. Never truncates: raises ValueError for examples that do not fit.
    """
    _check_fit(examples, shape)
    slots = (shape.documents, shape.prompts)
    documents, document_mask = collate_documents(
        examples, shape.documents, shape.document_tokens, pad_token_id
    )

    # Row (i, j) of [B, P] is row i * P + j below.
    starts = range(0, len(examples) * shape.prompts, shape.prompts)
    rows = [
        row
        for start, example in zip(starts, examples, strict=True)
        for row in range(start, start + len(example.prompts))
    ]
    prompt_rows = [prompt for example in examples for prompt in example.prompts]
    target_rows = [target for example in examples for target in example.targets]

    lengths = np.zeros(slots[0] * slots[1], np.int64)
    lengths[rows] = [len(prompt) for prompt in prompt_rows]
    first = shape.prompt_tokens - 1 - lengths  # index of the start token
    columns = np.arange(shape.prompt_tokens)
    prompts = np.full((len(lengths), shape.prompt_tokens), pad_token_id, np.int32)
    prompts[columns > first[:, None]] = _flatten(prompt_rows)
    prompts[np.arange(len(lengths)), first] = decoder_start_token_id
    prompt_mask = columns >= first[:, None]

    lengths = np.zeros(slots[0] * slots[1], np.int64)
    lengths[rows] = [len(target) for target in target_rows]
    target_mask = _right_padded_mask(lengths, len(lengths), shape.target_tokens)
    targets = np.full(target_mask.shape, pad_token_id, np.int32)
    targets[target_mask] = _flatten(target_rows)

    return Batch(
        documents=documents,
        document_mask=document_mask,
        prompts=prompts.reshape(*slots, -1),
        prompt_mask=prompt_mask.reshape(*slots, -1),
        targets=targets.reshape(*slots, -1),
        target_mask=target_mask.reshape(*slots, -1),
    )


def collate_documents(
    examples: Sequence[TokenizedExample], documents: int, document_tokens: int, pad_token_id: int
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """The documents of the examples, right-padded to these sizes, and their mask.

    Raises ValueError for examples that do not fit.
    """
    longest = _longest(example.document for example in examples)
    if len(examples) > documents or longest > document_tokens:
        raise ValueError(
            f"{len(examples)} documents of up to {longest} tokens do not fit into {documents} of "
            f"{document_tokens}"
        )
    mask = _right_padded_mask(
        [len(example.document) for example in examples], documents, document_tokens
    )
    padded = np.full(mask.shape, pad_token_id, np.int32)
    padded[mask] = _flatten(example.document for example in examples)
    return padded, mask


def _check_fit(examples: Sequence[TokenizedExample], shape: BatchShape) -> None:
    if len(examples) > shape.documents:
        raise ValueError(f"{len(examples)} examples do not fit into {shape}")
    for example in examples:
        if (
            len(example.document) > shape.document_tokens
            or len(example.prompts) > shape.prompts
            or _longest(example.prompts) >= shape.prompt_tokens
            or _longest(example.targets) > shape.target_tokens
        ):
            raise ValueError(
                f"example {example.id!r} does not fit into {shape}: "
                f"it has {len(example.document)} document tokens, {len(example.prompts)} prompts "
                f"of up to {_longest(example.prompts)} tokens (and the start token), "
                f"targets of up to {_longest(example.targets)} tokens"
            )


def _longest(rows: Iterable[Sequence[object]]) -> int:
    return max(map(len, rows), default=0)


def _flatten(rows: Iterable[Sequence[int]]) -> Int[np.ndarray, " tokens"]:
    return np.fromiter(chain.from_iterable(rows), np.int32)


def _right_padded_mask(
    lengths: Sequence[int] | Int[np.ndarray, " some"], rows: int, width: int
) -> Bool[np.ndarray, "rows width"]:
    """True in the first `lengths[i]` columns of row i, False in all other rows."""
    ends = np.zeros((rows, 1), np.int64)
    ends[: len(lengths), 0] = lengths
    return np.arange(width) < ends

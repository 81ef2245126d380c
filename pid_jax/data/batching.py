"""Token ids to arrays of a few fixed shapes.

The convention of every mask in the project: True where a real token stands.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.tokenizing import TokenizedExample

Arr = np.ndarray | jax.Array


class Batch(NamedTuple):
    """B documents and P prompts each, padded; a pytree of NumPy or JAX arrays.

    Examples hold fewer prompts than P, and a batch fewer documents than B: such an absent
    slot has the decoder start token as its whole prompt, so that its softmax is over
    something, and a target mask that is False throughout. An absent document is wholly
    masked.
    """

    documents: Int[Arr, "B S"]  # right-padded
    document_mask: Bool[Arr, "B S"]
    prompts: Int[Arr, "B P L"]  # left-padded: the decoder start token, then the prompt
    prompt_mask: Bool[Arr, "B P L"]
    targets: Int[Arr, "B P T"]  # right-padded, end token included
    target_mask: Bool[Arr, "B P T"]  # True where the loss counts

    @property
    def shape(self) -> "BatchShape":
        """The sizes of the arrays, absent slots counted."""
        documents, document_tokens = self.documents.shape
        _, prompts, prompt_tokens = self.prompts.shape
        return BatchShape(documents, document_tokens, prompts, prompt_tokens, self.targets.shape[2])


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The five sizes that decide a compilation."""

    documents: int  # B
    document_tokens: int  # S
    prompts: int  # P
    prompt_tokens: int  # L, the start token included
    target_tokens: int  # T, the end token included

    def __str__(self) -> str:
        return (
            f"{self.documents} documents of {self.document_tokens} tokens, "
            f"{self.prompts} prompts of {self.prompt_tokens}, targets of {self.target_tokens}"
        )


def bucket(size: int, *, multiple: int = 1) -> int:
    """Rounds a size up to one of a few, eight to each power of two.

    1 to 16 stand as they are, 17 to 32 go by 2, 33 to 64 by 4 and so on, so at most an
    eighth is padding. `multiple`, a power of two, makes the steps coarser: no step is
    smaller than it. Nothing is rounded to 0, since an array without elements helps nobody.
    """
    if size < 0:
        raise ValueError(f"a size is at least 0, not {size}")
    if multiple < 1 or multiple & (multiple - 1):
        raise ValueError(f"multiple is a power of two, not {multiple}")
    size = max(size, 1)
    step = max(multiple, 1 << max(size.bit_length() - 4, 0))
    return -(-size // step) * step


def bucket_below(size: int) -> int:
    """The largest bucket that is no larger than `size`, at least 1."""
    size = max(size, 1)
    step = 1 << max(size.bit_length() - 4, 0)
    return size // step * step


DOCUMENT_MULTIPLE = 32
"""Documents vary most in length, hence their coarser steps."""


def shape_of(
    examples: Sequence[TokenizedExample], *, document_multiple: int = DOCUMENT_MULTIPLE
) -> BatchShape:
    """The smallest bucketed shape that holds these examples in one batch."""
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
    """One batch of exactly this shape; row i is `examples[i]`, the rest is absent.

    Masked positions hold `pad_token_id`. Raises ValueError if something does not fit:
    nothing is ever cut here.
    """
    _check_fit(examples, shape)
    slots = (shape.documents, shape.prompts)
    document_mask = _right_padded_mask(
        [len(example.document) for example in examples], shape.documents, shape.document_tokens
    )
    documents = np.full(document_mask.shape, pad_token_id, np.int32)
    documents[document_mask] = _flatten(example.document for example in examples)

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
    first = shape.prompt_tokens - 1 - lengths  # where the start token stands
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
    """True in the first `lengths[i]` columns of row i, nowhere in rows beyond them."""
    ends = np.zeros((rows, 1), np.int64)
    ends[: len(lengths), 0] = lengths
    return np.arange(width) < ends

"""No scores of documents in programs compiled for a TPU v5e and an H100."""

import math
from pathlib import Path

import pytest

from pid_jax.backends.document_attention import MASK_WIDTH
from pid_jax.data.batching import BatchShape
from tests.helpers.targets import array_shapes, kernel_count, program_text

pytestmark = [pytest.mark.targets, pytest.mark.slow, pytest.mark.optimised]

HEADS, WIDTH = 12, 64
TOKENS = 11 * 128
"""Of a document. No other size has the factor 11, so that it marks the tokens in every shape."""
T5 = {
    "model_type": "t5",
    "vocab_size": 512,
    "d_model": 768,
    "d_kv": WIDTH,
    "d_ff": 256,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": HEADS,
    "dropout_rate": 0.1,
}
KERNEL = {"v5e": "tpu_custom_call", "h100": r"cudnn\$fmha"}
by_target = pytest.mark.parametrize("target", KERNEL)


def has_tokens_twice(sizes: tuple[int, ...]) -> bool:
    """Whether an array has numbers for each pair of document tokens, as axes or within axes."""
    count = math.prod(sizes)
    return count >= TOKENS**2 and count % 11**2 == 0


def without_bias(target: str, text: str) -> set[tuple[int, ...]]:
    """The shapes of a program, but for those of the bias that cuDNN reads, and of its sums.

    `by_distance` makes it from rows of one number less than two documents.
    """
    shapes = array_shapes(text)
    if target != "h100":
        return shapes
    rows = (TOKENS, 2 * TOKENS - 1, 2 * TOKENS)
    bias = {(HEADS, TOKENS, row) for row in rows} | {(HEADS, TOKENS * row) for row in rows}
    return {sizes for sizes in shapes if tuple(size for size in sizes if size != 1) not in bias}


def assert_no_scores_of_documents(target: str, text: str) -> None:
    assert [sizes for sizes in without_bias(target, text) if has_tokens_twice(sizes)] == []


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((24, HEADS, TOKENS, TOKENS), True),
        ((24 * HEADS * TOKENS, TOKENS), True),
        ((24 * HEADS, TOKENS**2), True),
        ((24, HEADS, 11, 128, TOKENS), True),
        ((TOKENS, TOKENS), True),
        ((24 * TOKENS, HEADS * WIDTH), False),
        ((24, HEADS, TOKENS, 128), False),
    ],
)
def test_merged_and_split_axes_do_not_hide_pairs_of_tokens(
    sizes: tuple[int, ...], expected: bool
) -> None:
    assert has_tokens_twice(sizes) == expected


@by_target
def test_training_with_dropout_stores_no_scores_of_documents(target: str, tmp_path: Path) -> None:
    shape = BatchShape(24, TOKENS, 2, 9, 8)
    text = program_text(target, "train", T5, shape, dump=tmp_path)
    assert_no_scores_of_documents(target, text)
    # Queries and keys, with the numbers that mask keys for cuDNN. Scores of one head have more.
    largest = shape.documents * TOKENS * HEADS * (WIDTH + MASK_WIDTH)
    assert largest < shape.documents * TOKENS**2
    assert max(map(math.prod, without_bias(target, text))) <= largest
    # Forward and backward, in both layers.
    assert kernel_count(text, KERNEL[target]) >= 4


@by_target
def test_prefill_stores_no_scores(target: str, tmp_path: Path) -> None:
    shape = BatchShape(8, TOKENS, 30, 9, 16)
    text = program_text(target, "prefill", T5, shape, dump=tmp_path)
    assert_no_scores_of_documents(target, text)
    assert kernel_count(text, KERNEL[target]) >= 2
    scores_of_prompts = shape.documents * HEADS * shape.prompts * shape.prompt_tokens * TOKENS
    assert max(map(math.prod, without_bias(target, text))) < scores_of_prompts

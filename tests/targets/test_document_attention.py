"""No scores of documents in programs compiled for a TPU v5e and an H100."""

import math
from pathlib import Path

import pytest

from pid_jax.data.batching import BatchShape
from tests.helpers.targets import array_shapes, kernel_count, program_text

pytestmark = [pytest.mark.targets, pytest.mark.slow, pytest.mark.optimised]

HEADS = 12
T5 = {
    "model_type": "t5",
    "vocab_size": 512,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 256,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": HEADS,
    "dropout_rate": 0.1,
}
KERNEL = {"v5e": "tpu_custom_call", "h100": r"cudnn\$fmha"}
by_target = pytest.mark.parametrize("target", KERNEL)


def scores_of_documents(text: str, shape: BatchShape) -> list[tuple[int, ...]]:
    """Arrays with two axes of document tokens. The bias, which documents share, is not one."""
    bias = HEADS * shape.document_tokens**2
    return [
        sizes
        for sizes in array_shapes(text)
        if sizes.count(shape.document_tokens) >= 2 and math.prod(sizes) > bias
    ]


@by_target
def test_training_with_dropout_stores_no_scores_of_documents(target: str, tmp_path: Path) -> None:
    shape = BatchShape(24, 512, 2, 9, 8)
    text = program_text(target, "train", T5, shape, dump=tmp_path)
    assert not scores_of_documents(text, shape)
    # Forward and backward, in both layers.
    assert kernel_count(text, KERNEL[target]) >= 4


@by_target
def test_prefill_stores_no_scores(target: str, tmp_path: Path) -> None:
    shape = BatchShape(8, 1536, 30, 9, 16)
    text = program_text(target, "prefill", T5, shape, dump=tmp_path)
    assert not scores_of_documents(text, shape)
    assert kernel_count(text, KERNEL[target]) >= 2
    rows = shape.documents * HEADS * shape.prompts * shape.prompt_tokens
    scores_of_prompts = [
        sizes
        for sizes in array_shapes(text)
        # What is longer than a document are the distances of the bias.
        if max(sizes) == shape.document_tokens and math.prod(sizes) >= rows * shape.document_tokens
    ]
    assert not scores_of_prompts

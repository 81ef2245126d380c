"""The kernels of a decode step, in programs compiled for an H100."""

import re
from pathlib import Path
from typing import Any

import pytest

from pid_jax.data.batching import BatchShape
from tests.helpers.targets import DIALOGUES, program_text

pytestmark = [pytest.mark.targets, pytest.mark.slow, pytest.mark.optimised]

T5_BASE = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_heads": 12,
}
BART_BASE = {
    "model_type": "bart",
    "vocab_size": 50265,
    "d_model": 768,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
}
GEMMA = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
}


def t5(layers: int, **options: Any) -> dict[str, Any]:
    return T5_BASE | {"num_layers": layers, "num_decoder_layers": layers} | options


def bart(layers: int) -> dict[str, Any]:
    return BART_BASE | {"encoder_layers": layers, "decoder_layers": layers}


def t5gemma(layers: int) -> dict[str, Any]:
    stack = GEMMA | {"num_hidden_layers": layers}
    return {"model_type": "t5gemma", "encoder": stack, "decoder": stack}


def kernels_of_step(config: dict[str, Any], dump: Path, shape: BatchShape = DIALOGUES) -> list[str]:
    """The instructions of the loop of `decode` that launch something."""
    text = program_text("h100", "decode", config, shape, dump=dump)
    (body,) = re.findall(r"body=%?([\w.\-]+)", text)
    computation = re.search(rf"^%?{re.escape(body)} .*?{{\n(.*?)^}}", text, re.M | re.S)
    assert computation is not None
    launched = r" (fusion|custom-call|copy|sort|reduce|dot)\("
    return [line for line in computation.group(1).splitlines() if re.search(launched, line)]


def copied_kernels(instructions: list[str]) -> list[str]:
    """Instructions with a result of the size of a kernel: casts, concatenations and paddings."""
    large = r"= \(?bf16\[(768|3072|1024|4096|50265|50272|32000|32128),\d+\]"
    return [line for line in instructions if re.search(large, line) and "fusion(" in line]


@pytest.mark.parametrize(
    ("config", "of_layer"),
    [
        (t5, 9),
        (lambda layers: t5(layers, feed_forward_proj="gated-gelu"), 11),
        (bart, 16),
        (t5gemma, 20),
    ],
    ids=["t5", "t5, gated", "bart", "t5gemma"],
)
def test_a_decode_step_has_few_kernels_a_layer(config, of_layer, tmp_path):
    one, two = (kernels_of_step(config(layers), tmp_path / str(layers)) for layers in (1, 2))
    print(f"{len(one)} kernels with a layer, {len(two)} with two")
    assert len(two) - len(one) <= of_layer
    assert len(one) - of_layer <= 14
    assert not copied_kernels(two)


def test_few_prompts_of_a_long_document_have_as_few_kernels(tmp_path):
    shape = BatchShape(1, 1536, 4, 9, 16)
    one, two = (kernels_of_step(t5(layers), tmp_path / str(layers), shape) for layers in (1, 2))
    print(f"{len(one)} kernels with a layer, {len(two)} with two")
    # Two kernels join the parts of a document that several programs read.
    assert len(two) - len(one) <= 11


def test_attention_of_a_decode_step_is_two_kernels_a_layer(tmp_path):
    instructions = kernels_of_step(t5(2), tmp_path)
    triton = [line for line in instructions if "__gpu$xla.gpu.triton" in line]
    # And one for the update of all caches, one for the selection of tokens.
    assert len(triton) == 2 * 2 + 2

"""The kernels of a decode step, in programs compiled for an H100."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.backends.settings import BY_PLATFORM, compiling_for
from pid_jax.decoding.automata import Position
from pid_jax.decoding.decode import decode
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.decoding.prefill import prefill
from pid_jax.programs import CompiledFunction, Programs
from tests.targets import h100

pytestmark = [pytest.mark.targets, pytest.mark.optimised]

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


def kernels_of_step(
    config: dict[str, Any],
    monkeypatch: Any,
    documents: int = 8,
    tokens: int = 512,
    prompts: int = 30,
) -> list[str]:
    """The instructions of the loop of `decode` that launch something, for prompts of 9 tokens."""
    device = h100.sharding()
    # There is no card to choose the blocks of XLA's own Triton products on.
    gpu = dataclasses.replace(
        BY_PLATFORM["gpu"], compiler_options={"xla_gpu_enable_triton_gemm": False}
    )
    monkeypatch.setitem(BY_PLATFORM, "gpu", gpu)
    model = models.build(config, jnp.bfloat16)

    def on_device(tree):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree
        )

    def shape(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    with compiling_for("gpu"):
        params = jax.eval_shape(model.decoding_params, models.abstract_params(model))
        encoded = jax.eval_shape(
            lambda params, *document: prompt_in_decoder.encode(model, params, *document),
            params,
            shape(documents, tokens),
            shape(documents, tokens, dtype=bool),
        )
        rows, options, length = (documents, prompts), DecodingOptions(), 16
        state = jax.eval_shape(
            lambda params, encoded, *inputs: prefill(
                model, params, encoded, *inputs, Position(), None, options, length=length
            ),
            params,
            encoded,
            shape(*rows, 9),
            shape(*rows, 9, dtype=bool),
            shape(*rows, dtype=bool),
            shape(*rows),
        )
    program = CompiledFunction(
        Programs(), "decode", decode, static=(model,), constant_shapes=1, donate_argnames=("state",)
    )
    arguments = params, encoded, state, options, shape(), (shape(), shape())
    text = program.compile(*on_device(arguments), label="a test").as_text()
    (body,) = re.findall(r"body=%?([\w.\-]+)", text)
    instructions = re.search(rf"^%?{re.escape(body)} .*?{{\n(.*?)^}}", text, re.M | re.S).group(1)
    launched = r" (fusion|custom-call|copy|sort|reduce|dot)\("
    return [line for line in instructions.splitlines() if re.search(launched, line)]


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
def test_a_decode_step_has_few_kernels_a_layer(config, of_layer, monkeypatch):
    one, two = (kernels_of_step(config(layers), monkeypatch) for layers in (1, 2))
    print(f"{len(one)} kernels with a layer, {len(two)} with two")
    assert len(two) - len(one) <= of_layer
    assert len(one) - of_layer <= 14
    assert not copied_kernels(two)


def test_few_prompts_of_a_long_document_have_as_few_kernels(monkeypatch):
    one, two = (
        kernels_of_step(t5(layers), monkeypatch, documents=1, tokens=1536, prompts=4)
        for layers in (1, 2)
    )
    print(f"{len(one)} kernels with a layer, {len(two)} with two")
    # Two kernels join the parts of a document that several programs read.
    assert len(two) - len(one) <= 11


def test_attention_of_a_decode_step_is_two_kernels_a_layer(monkeypatch):
    instructions = kernels_of_step(t5(2), monkeypatch)
    triton = [line for line in instructions if "__gpu$xla.gpu.triton" in line]
    # And one for the update of all caches, one for the selection of tokens.
    assert len(triton) == 2 * 2 + 2

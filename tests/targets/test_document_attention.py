"""No scores of encoders in programs compiled for a TPU v5e and an H100."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.backends.settings import compiling_for
from pid_jax.data.batching import Batch
from tests.targets import h100

pytestmark = [pytest.mark.targets, pytest.mark.optimised]

DOCUMENTS, TOKENS, PROMPTS, PROMPT, TARGET, HEADS = 24, 512, 2, 9, 8, 12

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


def v5e() -> Any:
    """A single TPU v5e, for `jax.ShapeDtypeStruct`. Skips the test without the TPU compiler."""
    pytest.importorskip("libtpu", reason="needs requirements-targets.txt")
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return NamedSharding(Mesh(np.array(topology.devices[:1]), ("device",)), PartitionSpec())


@pytest.fixture(params=["tpu", "gpu"])
def program(request, monkeypatch):
    """Compiles a function for a target. Returns its text."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.devices()  # JAX reads the flags of the CPU now. The TPU compiler does not know them.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    device = v5e() if request.param == "tpu" else h100.sharding()
    # There is no card to choose the blocks of XLA's own Triton products on.
    options = {} if request.param == "tpu" else {"xla_gpu_enable_triton_gemm": False}

    def compiled(function, *arguments):
        on_device = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), arguments
        )
        with compiling_for(request.param):
            lowered = jax.jit(function).lower(*on_device)
        return lowered.compile(compiler_options=options).as_text()

    return request.param, compiled


def inputs():
    model = models.build(T5, jnp.bfloat16)
    params = models.abstract_params(model)

    def shape(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    documents = shape(DOCUMENTS, TOKENS), shape(DOCUMENTS, TOKENS, dtype=bool)
    prompts = shape(DOCUMENTS, PROMPTS, PROMPT), shape(DOCUMENTS, PROMPTS, PROMPT, dtype=bool)
    targets = shape(DOCUMENTS, PROMPTS, TARGET), shape(DOCUMENTS, PROMPTS, TARGET, dtype=bool)
    return model, params, Batch(*documents, *prompts, *targets)


def largest_array(text: str) -> int:
    """The most numbers of an array of a program."""
    shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_training_with_dropout_stores_no_scores_of_documents(program):
    target, compiled = program
    model, params, batch = inputs()

    def gradients(params, batch, key):
        def loss(params):
            key_of_dropout = jax.random.wrap_key_data(key)
            return prompt_in_decoder.loss(model, params, batch, dropout_key=key_of_dropout)

        return jax.grad(loss, has_aux=True)(params)

    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    text = compiled(gradients, params, batch, key)
    assert largest_array(text) < DOCUMENTS * HEADS * TOKENS * TOKENS
    kernel = r"tpu_custom_call" if target == "tpu" else r"cudnn\$fmha"
    assert len(re.findall(f'custom_call_target="[^"]*{kernel}', text)) >= 4


def test_encoding_stores_no_scores_of_documents(program):
    target, compiled = program
    model, params, batch = inputs()

    def encode(params, documents, mask):
        return prompt_in_decoder.encode(model, params, documents, mask).cross_attention

    text = compiled(encode, params, batch.documents, batch.document_mask)
    assert largest_array(text) < DOCUMENTS * HEADS * TOKENS * TOKENS
    kernel = r"tpu_custom_call" if target == "tpu" else r"cudnn\$fmha"
    assert len(re.findall(f'custom_call_target="[^"]*{kernel}', text)) == 2

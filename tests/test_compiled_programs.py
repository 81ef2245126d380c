"""The sizes of all arrays in compiled programs: none has a document per prompt."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.data.batching import Batch
from pid_jax.data.packing import PackedBatch
from pid_jax.decoding.automata import Automata, Position
from pid_jax.decoding.compaction import Gather, gather_prompts
from pid_jax.decoding.decode import decode
from pid_jax.decoding.options import GenerationOptions
from pid_jax.decoding.prefill import prefill
from tests.helpers.compiled_programs import array_sizes
from tests.helpers.quick_compilation import compile_fully


@pytest.mark.optimised
def test_scoring_with_a_large_vocabulary_holds_few_logits_at_once():
    """One document and 60 prompts, mT5's vocabulary: all logits take 1.9 GB."""
    model = models.build(WIDE | {"model_type": "mt5", "vocab_size": 250_112})
    prompts, target_tokens = 60, 32

    def tokens(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)

    batch = Batch(*tokens(1, 64), *tokens(1, prompts, 8), *tokens(1, prompts, target_tokens))
    score = jax.jit(prompt_in_decoder.target_log_probabilities, static_argnums=0)
    lowered = score.lower(model, models.abstract_params(model), batch)
    assert max(array_sizes(lowered)) <= prompt_in_decoder.LOGITS_AT_ONCE
    temporaries = compile_fully(lowered).memory_analysis().temp_size_in_bytes
    print(f"temporaries: {temporaries / 1e6:.0f} MB")
    assert temporaries < 3 * 4 * prompt_in_decoder.LOGITS_AT_ONCE


DOCUMENTS, PROMPTS, DOCUMENT_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 3, 7, 41, 3, 4
GATHERED_PROMPTS = 5
WIDE = {
    "model_type": "t5",
    "vocab_size": 53,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}


_STACK = {
    "vocab_size": 53,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "sliding_window": 2,
    "sliding_window_pattern": 2,
}
MERGED = {"model_type": "t5gemma2", "encoder": {"text_config": _STACK}, "decoder": _STACK}
"""Two heads read the same keys, and one softmax is over a document and the tokens decoded."""
SHARED_KEYS = {"model_type": "t5gemma", "encoder": _STACK, "decoder": _STACK}


WIDE_BART = {
    "model_type": "bart",
    "vocab_size": 53,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


def shapes_of(documents: int, prompts: int, architecture: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A model, its parameters for decoding, and documents and prompts, all of them only shapes."""
    model = models.build(architecture)
    params = jax.eval_shape(model.decoding_params, models.abstract_params(model))
    inputs = (
        jax.ShapeDtypeStruct((documents, DOCUMENT_TOKENS), jnp.int32),
        jax.ShapeDtypeStruct((documents, DOCUMENT_TOKENS), bool),
        jax.ShapeDtypeStruct((documents, prompts, PROMPT_TOKENS), jnp.int32),
        jax.ShapeDtypeStruct((documents, prompts, PROMPT_TOKENS), bool),
        jax.ShapeDtypeStruct((documents, prompts), bool),
    )
    inputs = (*inputs, jax.ShapeDtypeStruct((documents, prompts), jnp.int32))
    return model, params, inputs


def decoding_array_sizes(
    documents: int,
    prompts: int,
    gathered_prompts: int,
    search: dict[str, int],
    architecture: dict[str, Any] = WIDE,
) -> dict[str, list[int]]:
    """Element counts of every array in the four programs of decoding, fused ones included."""
    model, params, inputs = shapes_of(documents, prompts, architecture)
    encode = functools.partial(prompt_in_decoder.encode, model)
    encoded = jax.eval_shape(encode, params, *inputs[:2])
    options = GenerationOptions(**search).compiled(model.config, Automata())
    read_prompts = functools.partial(prefill, model, length=NEW_TOKENS)
    arguments = (params, encoded, *inputs[2:], Position(), None, options)
    state = jax.eval_shape(read_prompts, *arguments)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    steps = functools.partial(decode, model)
    gather = Gather(
        jax.ShapeDtypeStruct((documents,), jnp.int32),
        jax.ShapeDtypeStruct((documents, gathered_prompts), jnp.int32),
        jax.ShapeDtypeStruct((documents, gathered_prompts), bool),
    )
    state_and_limits = (params, encoded, state, options, number, (number, number))
    return {
        "encode": array_sizes(jax.jit(encode).lower(params, *inputs[:2])),
        "prefill": array_sizes(jax.jit(read_prompts).lower(*arguments)),
        "decode": array_sizes(jax.jit(steps).lower(*state_and_limits)),
        "gather": array_sizes(jax.jit(gather_prompts).lower(state, gather)),
    }


def compiled_loss_array_sizes(
    documents: int,
    prompts: int,
    architecture: dict[str, Any] = WIDE,
    *,
    scan_layers: bool = False,
    packed: bool = False,
) -> list[int]:
    """The same of a training step's loss and gradient. packed: with a row for each prompt."""
    model = models.build(architecture, scan_layers=scan_layers)

    def tokens(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)

    batch = Batch(
        *tokens(documents, DOCUMENT_TOKENS),
        *tokens(documents, prompts, PROMPT_TOKENS),
        *tokens(documents, prompts, NEW_TOKENS),
    )
    if packed:
        rows, _ = tokens(documents, prompts, PROMPT_TOKENS + NEW_TOKENS)
        targets, mask = tokens(documents, prompts * NEW_TOKENS)
        batch = PackedBatch(*batch[:2], rows, rows, rows, targets, targets, mask)
    gradient = jax.grad(lambda params, batch: prompt_in_decoder.loss(model, params, batch)[0])
    return array_sizes(jax.jit(gradient).lower(models.abstract_params(model), batch))


@pytest.mark.optimised
def test_the_compiled_training_step_holds_no_array_of_a_document_per_prompt():
    per_prompt_documents = DOCUMENTS * PROMPTS * DOCUMENT_TOKENS * WIDE["d_model"]
    assert max(compiled_loss_array_sizes(DOCUMENTS, PROMPTS)) < per_prompt_documents
    assert max(compiled_loss_array_sizes(DOCUMENTS * PROMPTS, 1)) >= per_prompt_documents
    assert max(compiled_loss_array_sizes(DOCUMENTS, PROMPTS, MERGED)) < per_prompt_documents
    packed = compiled_loss_array_sizes(DOCUMENTS, PROMPTS, packed=True)
    assert max(packed) < per_prompt_documents
    scanned = compiled_loss_array_sizes(DOCUMENTS, PROMPTS, scan_layers=True)
    assert max(scanned) < per_prompt_documents


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("architecture", "search"),
    [
        (WIDE, {}),
        (WIDE, {"num_beams": 4}),
        (WIDE, {"draft_tokens": 2, "draft_ngram": 2}),
        (WIDE_BART, {}),
    ],
    ids=["greedy", "beams", "drafts", "bart"],
)
def test_no_compiled_decoding_program_holds_an_array_of_a_document_per_prompt(architecture, search):
    # One document's encoding, or one layer's keys for it, has S * D = S * H * K elements.
    per_document = DOCUMENT_TOKENS * WIDE["d_model"]
    sizes = decoding_array_sizes(DOCUMENTS, PROMPTS, GATHERED_PROMPTS, search, architecture)
    assert max(sizes["encode"] + sizes["prefill"]) < DOCUMENTS * PROMPTS * per_document
    assert max(sizes["decode"]) < DOCUMENTS * PROMPTS * per_document
    # Beams make the caches that it reads as large as five prompts' documents.
    assert max(sizes["gather"]) < DOCUMENTS * GATHERED_PROMPTS * per_document


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("architecture", "search"),
    [
        (SHARED_KEYS, {}),
        (MERGED, {}),
        (MERGED, {"num_beams": 2}),
        (MERGED, {"draft_tokens": 2, "draft_ngram": 2}),
    ],
    ids=["t5gemma", "merged", "merged-beams", "merged-drafts"],
)
def test_keys_that_heads_share_exist_once_per_document_too(architecture, search):
    """One layer's keys of a document have S * G * K elements, as many as an encoding has."""
    per_document = DOCUMENT_TOKENS * _STACK["num_key_value_heads"] * _STACK["head_dim"]
    sizes = decoding_array_sizes(DOCUMENTS, PROMPTS, GATHERED_PROMPTS, search, architecture)
    assert (
        max(sizes["encode"] + sizes["prefill"] + sizes["decode"])
        < DOCUMENTS * PROMPTS * per_document
    )


@pytest.mark.optimised
def test_the_same_search_finds_shared_keys():
    per_document = DOCUMENT_TOKENS * _STACK["num_key_value_heads"] * _STACK["head_dim"]
    sizes = decoding_array_sizes(DOCUMENTS * PROMPTS, 1, 1, {}, MERGED)
    assert (
        min(max(sizes["encode"] + sizes["prefill"]), max(sizes["decode"]))
        >= DOCUMENTS * PROMPTS * per_document
    )


@pytest.mark.optimised
def test_the_same_search_finds_the_documents_of_prompt_in_encoder():
    """There each prompt is a document."""
    per_document = DOCUMENT_TOKENS * WIDE["d_model"]
    sizes = decoding_array_sizes(DOCUMENTS * PROMPTS, 1, 1, {})
    assert max(sizes["encode"] + sizes["prefill"]) >= DOCUMENTS * PROMPTS * per_document
    assert max(sizes["decode"]) >= DOCUMENTS * PROMPTS * per_document

"""What a document scores does not depend on what is beside it, however long either is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import models
from pid_jax.inference.model import PidModel

T5_SIZES = {
    "vocab_size": 96,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "local_radius": 5,
    "global_block_size": 4,
}
BART_SIZES = {
    "vocab_size": 96,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 320,
    "max_encoder_position_embeddings": 320,
    "max_decoder_position_embeddings": 64,
    "attention_window": [4, 8],
}
STACK = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 5,
    "sliding_window_pattern": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "t5": {"model_type": "t5", **T5_SIZES},
    "longt5, local": {"model_type": "longt5", **T5_SIZES},
    "longt5, transient-global": {
        "model_type": "longt5",
        **T5_SIZES,
        "encoder_attention_type": "transient-global",
    },
    "bart": {"model_type": "bart", **BART_SIZES},
    "mbart": {"model_type": "mbart", **BART_SIZES},
    "pegasus": {"model_type": "pegasus", **BART_SIZES},
    "led, one global token": {"model_type": "led", **BART_SIZES},
    "led, three global tokens": {"model_type": "led", **BART_SIZES, "global_attention_tokens": 3},
    "t5gemma": {"model_type": "t5gemma", "encoder": STACK, "decoder": STACK},
    "t5gemma2": {"model_type": "t5gemma2", "encoder": {"text_config": STACK}, "decoder": STACK},
}
LENGTHS = (0, 1, 2, 4, 5, 9, 17, 32)
"""None, one, fewer than LED's global tokens, about a window's radius and LongT5's blocks."""
LONGER = (33, 64, 193)
"""`attend_nearby` cuts the last into several blocks."""
DOCUMENTS = [[2 + (7 * i + length) % 90 for i in range(length)] for length in LENGTHS + LONGER]
PROMPTS = [[[3, 4, 5], []]] * len(DOCUMENTS)
TARGETS = [[[6, 7, 1], [8]]] * len(DOCUMENTS)


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    """Large weights: what is wrongly attended to shows."""
    module = models.build(VARIANTS[request.param])
    random = np.random.default_rng(0)
    yield PidModel(
        module,
        jax.tree.map(
            lambda leaf: jnp.asarray(0.4 * random.normal(size=leaf.shape), jnp.float32),
            models.abstract_params(module),
        ),
    )
    jax.clear_caches()


def test_a_document_scores_the_same_alone_and_in_a_batch(model):
    alone = [
        model.score([document], [prompts], [targets])[0]
        for document, prompts, targets in zip(DOCUMENTS, PROMPTS, TARGETS, strict=True)
        if len(document) <= max(LENGTHS)  # of one compiled shape
    ]
    batched = model.score(DOCUMENTS, PROMPTS, TARGETS, batch_tokens=1 << 20)
    np.testing.assert_allclose(batched[: len(LENGTHS)], alone, rtol=1e-6, atol=1e-5)


def test_an_empty_document_scores_as_one_padding_token(model):
    padding = [model.config.pad_token_id]
    scores = model.score([[], padding], PROMPTS[:2], TARGETS[:2])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6, atol=1e-5)

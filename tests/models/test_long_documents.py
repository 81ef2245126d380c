"""Families for long documents: compiled programs hold no array of every pair of tokens."""

import jax
import jax.numpy as jnp
import pytest

from pid_jax import models, prompt_in_decoder
from pid_jax.data.batching import Batch
from tests.helpers.compiled_programs import array_sizes

TOKENS, PROMPTS, PROMPT_TOKENS, TARGET_TOKENS, WIDTH = 4096, 2, 3, 4, 16
HEADS = 2
T5_SIZES = {
    "vocab_size": 53,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": WIDTH,
    "num_layers": 1,
    "num_heads": HEADS,
}
LED_SIZES = {
    "vocab_size": 53,
    "d_model": WIDTH,
    "encoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "encoder_ffn_dim": WIDTH,
    "decoder_layers": 1,
    "decoder_attention_heads": HEADS,
    "decoder_ffn_dim": WIDTH,
    "max_encoder_position_embeddings": TOKENS,
    "max_decoder_position_embeddings": 64,
    "attention_window": 64,
    "attention_dropout": 0.1,
}
LONG = {
    "longt5-transient-global": {
        "model_type": "longt5",
        **T5_SIZES,
        "local_radius": 31,
        "encoder_attention_type": "transient-global",
    },
    "led": {"model_type": "led", **LED_SIZES},
}

pytestmark = pytest.mark.optimised


def largest_arrays(config):
    """Of the compiled programs that encode a document, and that train on it with dropout."""
    model = models.build(config)
    params = models.abstract_params(model)

    def tokens(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)

    batch = Batch(
        *tokens(1, TOKENS),
        *tokens(1, PROMPTS, PROMPT_TOKENS),
        *tokens(1, PROMPTS, TARGET_TOKENS),
    )

    def encode(params, document, mask):
        return prompt_in_decoder.encode(model, params, document, mask)

    def gradient(params, batch, key):
        def loss(params):
            return prompt_in_decoder.loss(model, params, batch, dropout_key=key)[0]

        return jax.grad(loss)(params)

    key = jax.eval_shape(lambda: jax.random.key(0))
    programs = (
        jax.jit(encode).lower(params, *tokens(1, TOKENS)),
        jax.jit(gradient).lower(params, batch, key),
    )
    return [max(array_sizes(program)) for program in programs]


@pytest.mark.parametrize("platform", ["cpu", "default"])
@pytest.mark.parametrize("family", LONG)
def test_no_compiled_program_holds_scores_of_every_pair_of_tokens(family, platform, monkeypatch):
    """On a CPU the largest are keys and values of three blocks for each token: 3 S D elements.

    Elsewhere ("default", compiled for the CPU here) they are the scores of all tokens with three
    blocks each; transient-global ones with S / 16 sums, too.
    """
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *given, **branches: branches[platform](*given)
    )
    most = {"cpu": 4 * TOKENS * WIDTH, "default": HEADS * TOKENS * (3 * 64 + TOKENS // 16)}
    assert max(largest_arrays(LONG[family])) <= most[platform] < HEADS * TOKENS * TOKENS / 8


def test_the_same_search_finds_them_in_t5():
    """Whose encoder has them in training alone."""
    encoding, training = largest_arrays({"model_type": "t5", **T5_SIZES})
    assert encoding < TOKENS * TOKENS <= training

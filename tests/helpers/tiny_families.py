"""A small `config.json` of every family, by name."""

from typing import Any

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

DISTINCT = sorted(VARIANTS.keys() - {"longt5, local", "mbart", "pegasus", "led, one global token"})
"""Variants that compute attention in different ways. Each of the others does so as one of these."""

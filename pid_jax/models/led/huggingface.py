"""LED's Hugging Face tensor names, and its entry in the registry."""

import dataclasses

from pid_jax.models.bart import huggingface as bart_names
from pid_jax.models.led.configuration import LEDConfig
from pid_jax.models.led.modules import LED
from pid_jax.models.protocol import About, TensorPath


def tensors(config: LEDConfig) -> dict[str, TensorPath]:
    paths = bart_names.tensors(config, "led.")
    for i in range(config.encoder_layers):
        attention = f"led.encoder.layers.{i}.self_attn"
        path = ("encoder", f"layers_{i}", "self_attention")
        for name in bart_names.attention_tensors(attention, *path):
            del paths[name]
        for name in ("query", "key", "value"):
            for projection in (name, f"{name}_global"):
                theirs = f"{attention}.longformer_self_attn.{projection}"
                paths |= bart_names.linear_tensors(theirs, *path, projection)
        paths |= bart_names.linear_tensors(f"{attention}.output", *path, "output")
    return paths


_ABOUT = About(
    "LED",
    "LED; the first token is global",
    "led-large-16384",
    {
        "model_type": "led",
        "vocab_size": 50265,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "attention_window": 1024,
        "max_encoder_position_embeddings": 16384,
        "max_decoder_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
    },
)

FAMILY = dataclasses.replace(
    bart_names.family(LEDConfig, _ABOUT, "led", prefix="led."), module=LED, tensors=tensors
)

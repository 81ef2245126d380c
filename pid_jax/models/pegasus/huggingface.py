"""PEGASUS's entry in the registry: its tensors have BART's names."""

from pid_jax.models.bart.huggingface import family
from pid_jax.models.pegasus.configuration import PegasusConfig
from pid_jax.models.protocol import About

_ABOUT = About(
    "PEGASUS",
    "PEGASUS",
    "pegasus-large",
    {
        "model_type": "pegasus",
        "vocab_size": 96103,
        "encoder_layers": 16,
        "decoder_layers": 16,
        "max_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
    },
)

FAMILY = family(PegasusConfig, _ABOUT, "pegasus")

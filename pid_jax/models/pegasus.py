"""PEGASUS (Zhang et al., arXiv 1912.08777): norms before each part, sinusoidal positions."""

import dataclasses
from typing import ClassVar

from pid_jax.models import bart_layers
from pid_jax.models.protocol import About


@dataclasses.dataclass(frozen=True)
class PegasusConfig(bart_layers.BartLikeConfig):
    """A PEGASUS `config.json`."""

    model_type: str = "pegasus"
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    architecture: ClassVar[str] = "PegasusForConditionalGeneration"
    norm_first: ClassVar[bool] = True
    embedding_norm: ClassVar[bool] = False
    final_norm: ClassVar[bool] = True
    sinusoidal: ClassVar[bool] = True


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

FAMILY = bart_layers.family(PegasusConfig, _ABOUT, "pegasus")

"""BART (Lewis et al., arXiv 1910.13461): norms after each part, learned positions."""

import dataclasses
from typing import ClassVar

from pid_jax.models import bart_layers
from pid_jax.models.protocol import About


@dataclasses.dataclass(frozen=True)
class BartConfig(bart_layers.BartLikeConfig):
    """A BART `config.json`."""

    model_type: str = "bart"

    architecture: ClassVar[str] = "BartForConditionalGeneration"
    norm_first: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = False


_ABOUT = About(
    "BART",
    "BART",
    "bart-large",
    {
        "model_type": "bart",
        "vocab_size": 50265,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "max_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
    },
)

FAMILY = bart_layers.family(BartConfig, _ABOUT, "bart")

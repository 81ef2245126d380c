"""mBART and mBART-50 (Liu et al., arXiv 2001.08210; Tang et al., arXiv 2008.00401).

BART with norms before each part and after the last. A decoder starts with the code of the
language that it is to write (mBART), or is made to write it first (mBART-50):
"decoder_start_token_id" and "forced_bos_token_id" in the checkpoint's files say which.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from pid_jax.models import bart_layers
from pid_jax.models.protocol import About


@dataclasses.dataclass(frozen=True)
class MBartConfig(bart_layers.BartLikeConfig):
    """An mBART `config.json`."""

    model_type: str = "mbart"

    architecture: ClassVar[str] = "MBartForConditionalGeneration"
    norm_first: ClassVar[bool] = True
    embedding_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = True

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> bart_layers.BartLikeConfig:
        """Where no language is set, decoders start with `bos_token_id`, as in transformers."""
        if config.get("decoder_start_token_id") is None:
            start = config.get("bos_token_id", cls.bos_token_id)
            config = {**config, "decoder_start_token_id": start}
        return super().from_hf(config)


_ABOUT = About(
    "mBART",
    "mBART, mBART-50",
    "mbart-large-50",
    {
        "model_type": "mbart",
        "vocab_size": 250054,
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

FAMILY = bart_layers.family(MBartConfig, _ABOUT, "mbart")

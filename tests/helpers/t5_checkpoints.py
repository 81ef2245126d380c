"""Random checkpoints of T5 with few tokens, as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers

END = 1
SIZES = {
    "vocab_size": 12,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


def make(directory: Path, *, end_weight: float = 0.6, **sizes: Any) -> Any:
    """A model of transformers, saved to `directory`.

    `end_weight` times the other tokens' embeddings is added to that of the end token, so that some
    outputs end early and some late.
    """
    torch.manual_seed(0)
    config = transformers.T5Config(**{**SIZES, **sizes})
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.shared.weight[END] += end_weight * model.shared.weight[2:].sum(0)
    model.save_pretrained(directory)
    return model

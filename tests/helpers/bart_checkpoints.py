"""Random checkpoints of BART and its relatives, as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.helpers.transformers_models import resemble_all

SIZES = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 320,
    "init_std": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 95,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}


def make(
    name: str, directory: Path, *, seed: int, forced_bos_token_id: int | None = None, **options: Any
) -> Any:
    """A model of transformers' class `name`ForConditionalGeneration, saved to `directory`."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():  # norms and biases start alike: make them differ
            if tensor.requires_grad:
                tensor.add_(0.1 * torch.randn_like(tensor))
        model.final_logits_bias.normal_()
        resemble_all(model.lm_head.weight)
        # Where nothing is tied, transformers 5 makes each stack an embedding of its own.
        base = model.base_model
        for stack in (base.encoder, base.decoder):
            stack.embed_tokens.weight.copy_(base.shared.weight)
    model.generation_config.forced_bos_token_id = forced_bos_token_id
    model.save_pretrained(directory)
    return model

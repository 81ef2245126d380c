"""T5Gemma 2 against transformers, on random weights, and what only T5Gemma 2 has."""

from pathlib import Path
from typing import Any

import jax
import pytest
import torch
import transformers

from pid_jax.model import PidModel
from tests.models.parity import Parity
from tests.transformers_models import resemble_all

STACK = {
    "vocab_size": 98,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 9,
    "sliding_window": 5,
    "sliding_window_pattern": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 256,
    "patch_size": 16,
}
IMAGE, BEGIN_IMAGE, END_IMAGE = 96, 97, 44  # the last one is in documents of these tests

VARIANTS: dict[str, dict[str, Any]] = {
    "as published, windows of odd width": {},
    "windows of even width, other depths and heads, capped logits": {
        "encoder": {"sliding_window": 4, "num_hidden_layers": 3},
        "decoder": {
            "sliding_window": 2,
            "num_key_value_heads": 4,
            "head_dim": 6,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 2.0,  # which transformers does not apply
        },
    },
}


def make(variant: str, directory: Path) -> Any:
    """A random model of this variant, vision tower and all, as transformers saves it."""
    options = VARIANTS[variant]
    torch.manual_seed(0)
    config = transformers.T5Gemma2Config(
        encoder={
            "text_config": {**STACK, **options.get("encoder", {})},
            "vision_config": VISION,
            "boi_token_index": BEGIN_IMAGE,
            "eoi_token_index": END_IMAGE,
        },
        decoder={**STACK, **options.get("decoder", {})},
        image_token_index=IMAGE,
    )
    model = transformers.T5Gemma2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # from the usual start all outputs are alike
            parameter.add_(0.3 * torch.randn_like(parameter))
        head = resemble_all(model.lm_head.out_proj.weight.mul_(0.3))  # or outputs repeat a token
        head[0] = 0.0  # transformers would mask padding that is chosen: it never is
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = make(request.param, directory)
    yield theirs, PidModel.from_pretrained(directory)
    jax.clear_caches()


class TestT5Gemma2(Parity):
    pass

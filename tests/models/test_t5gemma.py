"""T5Gemma against transformers, on random weights, and what only T5Gemma has."""

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
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 9,
    "sliding_window": 4,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "balanced, grouped heads, short windows": {},
    "a small decoder of another width, untied": {
        "untied": True,
        "encoder": {"num_hidden_layers": 3, "num_key_value_heads": 1},
        "decoder": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "head_dim": 4,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
        },
    },
}


def make(variant: str, directory: Path) -> Any:
    """A random model of this variant, saved to `directory` as transformers saves it."""
    options = VARIANTS[variant]
    torch.manual_seed(1)
    capped = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}  # so that they show
    config = transformers.T5GemmaConfig(
        encoder={**STACK, **capped, **options.get("encoder", {})},
        decoder={**STACK, **capped, **options.get("decoder", {})},
        tie_word_embeddings=not options.get("untied", False),
    )
    config._attn_implementation = "eager"  # the only one that caps
    model = transformers.T5GemmaForConditionalGeneration(config).eval()
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


class TestT5Gemma(Parity):
    pass

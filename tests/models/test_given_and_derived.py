"""A `config.json` may give what transformers also derives from other keys, or under two names."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
import transformers

from pid_jax import models
from pid_jax.inference.model import PidModel
from tests.helpers import bart_checkpoints, transformers_models
from tests.helpers.parity import DOCUMENTS, PROMPTS, TARGETS

T5 = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
LONG = {"local_radius": 5, "global_block_size": 4}
STACK = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 6,
}
BART = bart_checkpoints.SIZES
LED = {key: BART[key] for key in BART if key != "max_position_embeddings"} | {
    "max_encoder_position_embeddings": 320,
    "max_decoder_position_embeddings": 40,
    "attention_window": 4,
}


def stacks(**changes: Any) -> dict[str, Any]:
    return {key: {**STACK, **changes} for key in ("encoder", "decoder")}


GATED = {"feed_forward_proj": "gelu", "is_gated_act": True}
NAMED = {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}
UNGATED = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "is_gated_act": False}
CASES = [
    *(
        {"model_type": model_type, **T5, **more, **change}
        for model_type, more, change in (
            ("t5", {}, GATED),
            ("t5", {}, NAMED),
            ("mt5", {}, UNGATED),
            ("umt5", {}, NAMED),
            ("longt5", LONG, GATED),
        )
    ),
    {"model_type": "t5", **T5, "feed_forward_proj": "gated-gelu", "is_gated_act": None},
    {"model_type": "t5", **T5, "feed_forward_proj": "gated-swish", "scale_decoder_outputs": None},
    {"model_type": "t5", **T5, "tie_word_embeddings": False, "scale_decoder_outputs": True},
    {"model_type": "mt5", **T5, "scale_decoder_outputs": True},
    {"model_type": "umt5", **T5, "tie_word_embeddings": False},
    {"model_type": "t5", **T5, "hidden_size": 16, "num_attention_heads": 2, "head_dim": 4},
    {"model_type": "t5", **T5, "num_decoder_layers": None, "num_hidden_layers": 1},
    *(
        {"model_type": model_type, **sizes, "num_hidden_layers": 1, "num_attention_heads": 2}
        for model_type, sizes in {"bart": BART, "led": LED}.items()
    ),
    {"model_type": "t5gemma", **stacks(dropout_rate=0.5, hidden_act="relu"), "vocab_size": 50},
    {
        "model_type": "t5gemma",
        **stacks(
            rope_scaling={"type": "linear", "factor": 3.0},
            rope_parameters={"rope_type": "default", "rope_theta": 50.0},
        ),
    },
]


def name(config: dict[str, Any]) -> str:
    usual = T5 | BART | LED | LONG
    own = {key: value for key, value in config.items() if usual.get(key, ...) != value}
    own |= {key: {} for key in ("encoder",) if key in own}
    if "decoder" in own:
        own["decoder"] = {k: v for k, v in own["decoder"].items() if STACK.get(k) != v}
    return json.dumps(own)


def checkpoint(config: dict[str, Any], directory: Path) -> Any:
    """Random weights of the model that transformers makes of this very `config.json`."""
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(
        transformers.AutoConfig.from_pretrained(directory)
    ).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            if tensor.requires_grad:
                tensor.add_(0.2 * torch.randn_like(tensor))
    theirs.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").unlink()
    return theirs


@pytest.mark.parametrize("config", CASES, ids=name)
def test_what_is_given_and_what_is_derived_mean_what_they_mean_to_transformers(config, tmp_path):
    theirs = checkpoint(config, tmp_path)
    ours = PidModel.from_pretrained(tmp_path)
    if config["model_type"] == "led":  # transformers has no global token unless it is told
        ours = PidModel(models.build({**config, "global_attention_tokens": 0}), ours.params)
    [[score]] = ours.score(DOCUMENTS[:1], [PROMPTS[0][:1]], [TARGETS[0][:1]])
    theirs.generation_config.decoder_start_token_id = ours.config.decoder_start_token_id
    expected = transformers_models.log_probability(
        theirs, DOCUMENTS[0], PROMPTS[0][0], TARGETS[0][0]
    )
    assert score == pytest.approx(expected, abs=1e-4)
    assert models.config_from_hf(ours.config.to_hf()) == ours.config
    jax.clear_caches()

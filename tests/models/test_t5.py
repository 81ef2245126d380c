"""Every T5 variant against transformers, on random weights, and what only T5 has."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.t5.modeling_t5 import T5Attention

from pid_jax import models
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.models import positions
from tests.helpers import transformers_models
from tests.helpers.parity import DOCUMENTS, PROMPTS, TARGETS, Parity
from tests.helpers.transformers_models import resemble_all

SIZES = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "T5 1.0 (relu, tied)": {"class": "T5"},
    "T5 1.1 (gated-gelu, untied)": {"class": "T5", "feed_forward_proj": "gated-gelu", "untied": 1},
    "T5 1.1 (gated-gelu, tied, unscaled)": {
        "class": "T5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "Flan-T5 (gated-gelu, untied, d_kv * heads != d_model)": {
        "class": "T5",
        "feed_forward_proj": "gated-gelu",
        "num_heads": 6,
        "untied": 1,
    },
    "mT5 (gated-gelu, untied)": {"class": "MT5", "untied": 1},
    "ByT5 (gated-gelu, untied, deep encoder)": {
        "class": "T5",
        "feed_forward_proj": "gated-gelu",
        "num_layers": 4,
        "num_decoder_layers": 2,
        "vocab_size": 384,
        "untied": 1,
    },
    "T5 with a deep decoder": {"class": "T5", "num_decoder_layers": 3, "seed": 3},
    "T5 with few buckets and a short reach": {
        "class": "T5",
        "seed": 3,  # with seed 0 no output ends early
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "layer_norm_epsilon": 1e-3,
    },
    "T5 with gated-silu": {"class": "T5", "feed_forward_proj": "gated-silu"},
    "UMT5 (a bias in every layer, tied)": {"class": "UMT5"},
    "UMT5 (a bias in every layer, untied)": {"class": "UMT5", "num_decoder_layers": 3, "untied": 1},
}


def make(variant: str, directory: Path) -> Any:
    """A random model of this variant, saved to `directory` as published checkpoints are."""
    options = {**SIZES, **VARIANTS[variant]}
    name = options.pop("class")
    untied = options.pop("untied", False)
    torch.manual_seed(options.pop("seed", 0))
    config = (
        getattr(transformers, f"{name}Config")(**options, tie_word_embeddings=not untied)
        if "tie_word_embeddings" not in options
        else getattr(transformers, f"{name}Config")(**options)
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start alike: make them differ
            parameter.add_(0.1 * torch.randn_like(parameter))
    if not untied:
        with torch.no_grad():
            resemble_all(model.shared.weight)
        model.save_pretrained(directory)
        return model
    # transformers 5 ties by force and writes one tensor: an untied checkpoint is written by hand.
    torch.nn.init.normal_(model.shared.weight)
    tensors = {k: v for k, v in model.state_dict().items() if "embed_tokens" not in k}
    tensors["lm_head.weight"] = resemble_all(torch.randn_like(model.shared.weight) * 0.3)
    config.save_pretrained(directory)
    config_file = directory / "config.json"
    text = config_file.read_text()
    assert '"tie_word_embeddings": true' in text
    config_file.write_text(
        text.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    tensors = {k: v.clone().contiguous() for k, v in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return getattr(transformers, f"{name}ForConditionalGeneration").from_pretrained(directory)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = make(request.param, directory)
    yield theirs, PidModel.from_pretrained(directory)
    jax.clear_caches()


class TestT5(Parity):
    pass


def test_an_export_of_new_weights_gives_transformers_the_same_scores(tmp_path):
    for tied in (True, False):
        config = {**SIZES, "model_type": "t5", "tie_word_embeddings": tied}
        model = models.build(config)
        ours = PidModel(model, models.init_params(model, jax.random.key(1)))
        ours.save_pretrained(tmp_path / str(tied))
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / str(tied))
        [[score]] = ours.score(DOCUMENTS[:1], [PROMPTS[0][:1]], [TARGETS[0][:1]])
        expected = transformers_models.log_probability(
            theirs, DOCUMENTS[0], PROMPTS[0][0], TARGETS[0][0]
        )
        assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is unknown; supported: t5, mt5, umt5"),
        ({"feed_forward_proj": "gated-tanh"}, "\"feed_forward_proj\": 'gated-tanh' is not support"),
        ({"d_model": "512"}, '"d_model" must be of type int'),
        ({"num_heads": 0}, '"num_heads" must be above 0'),
        ({"relative_attention_num_buckets": 2}, "must be even and at least 4"),
        ({"is_encoder_decoder": False}, '"is_encoder_decoder": False is not supported'),
        ({"eos_token_id": []}, '"eos_token_id" must be a token id or a list of some, but is []'),
    ],
)
def test_a_config_that_is_not_supported_is_named(change, message):
    with pytest.raises(UserError) as error:
        models.build({**SIZES, "model_type": "t5", **change})
    assert message in str(error.value)


@pytest.mark.parametrize("scaled", [None, True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
def test_a_config_survives_being_written(model_type, tied, scaled):
    written = {"model_type": model_type, "tie_word_embeddings": tied}
    if scaled is not None:
        written["scale_decoder_outputs"] = scaled
    config = models.config_from_hf(written)
    assert config.tie_word_embeddings == tied
    assert models.config_from_hf(config.to_hf()) == config


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 12), (64, 500)])
def test_buckets_of_far_distances_equal_transformers(bidirectional, buckets, max_distance):
    distances = np.arange(-1200, 1201)
    expected = T5Attention._relative_position_bucket(
        torch.tensor(distances)[None], bidirectional, buckets, max_distance
    )
    ours = positions.relative_position_bucket(
        jnp.asarray(distances)[None],
        bidirectional=bidirectional,
        buckets=buckets,
        max_distance=max_distance,
    )
    np.testing.assert_array_equal(ours, expected.numpy())


def test_new_position_biases_start_nearby():
    """Four heads: everything, the token before, the next one, the few before; no noise."""

    def table(bidirectional):
        bias = positions.RelativePositionBias(4, 32, 128, bidirectional, stddev=0.0)
        return np.asarray(positions.nearby_start(jax.random.key(0), (32, 4), jnp.float32, bias))

    # Buckets of T5: 0 is the token itself, 1..7 so many tokens before, 17.. so many after.
    encoder = table(bidirectional=True)
    np.testing.assert_allclose(encoder[:, 0], 0)
    np.testing.assert_allclose(encoder[[0, 1, 2, 7, 17, 18], 1], [-1, 0, -1, -6, -2, -3])
    np.testing.assert_allclose(encoder[[0, 1, 2, 17, 18, 19], 2], [-1, -2, -3, 0, -1, -2])
    np.testing.assert_allclose(encoder[[0, 3, 4, 17], 3], [-0.9, 0, -0.3, -1.2], atol=1e-6)
    assert encoder.min() == -8
    decoder = table(bidirectional=False)
    np.testing.assert_allclose(decoder[[0, 1, 2, 3], 1], [-1, 0, -1, -2])
    np.testing.assert_allclose(decoder[[0, 1, 2, 3], 2], [0, -1, -2, -3])


def test_a_config_without_a_model_type_lists_what_there_is():
    with pytest.raises(UserError, match='"model_type" is missing; supported: t5, mt5, umt5'):
        models.build({})

"""T5Gemma 2 against transformers, on random weights, and what only T5Gemma 2 has."""

from pathlib import Path
from typing import Any

import jax
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pid_jax import models
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.models.positions import Rotation
from tests.helpers import parity
from tests.helpers.parity import Parity
from tests.helpers.transformers_models import resemble_all

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
    "as published, windows of odd width": {"seed": 1},
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
    torch.manual_seed(options.get("seed", 0))
    config = transformers.T5Gemma2Config(
        encoder={
            "text_config": {**STACK, **options.get("encoder", {})},
            "vision_config": VISION,
            "boi_token_index": BEGIN_IMAGE,
            "eoi_token_index": END_IMAGE,
        },
        decoder={**STACK, **options.get("decoder", {})},
        image_token_index=IMAGE,
        dropout_rate=0.1,
        attention_dropout=0.1,
    )
    model = transformers.T5Gemma2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # from the usual start all outputs are alike
            parameter.add_(0.3 * torch.randn_like(parameter))
        head = resemble_all(model.lm_head.out_proj.weight.mul_(0.3))  # or outputs repeat a token
        head[[0, IMAGE, BEGIN_IMAGE]] = 0.0  # neither padding nor images are ever chosen
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    return make(next(iter(VARIANTS)), directory), directory


@pytest.fixture(scope="module")
def small(checkpoint):
    return PidModel.from_pretrained(checkpoint[1])


def test_compaction_and_drafts_change_nothing(small):
    parity.assert_compaction_and_drafts_change_nothing(small)


def test_it_learns(small):
    parity.train_until_learned(small)


def test_tokens_of_images_are_refused_and_those_after_them_are_not(small):
    for document, prompt in (([5, IMAGE, 6], [7]), ([5], [BEGIN_IMAGE])):
        with pytest.raises(
            UserError, match="which stands for an image: of T5Gemma 2 only the text"
        ):
            small.generate([document], [[prompt]])
    small.score([[5, END_IMAGE]], [[[7]]], [[[8]]])


def test_what_is_left_out_of_a_checkpoint_is_said(checkpoint, caplog):
    PidModel.from_pretrained(checkpoint[1])
    messages = [one.getMessage() for one in caplog.records if one.name.startswith("pid_jax")]
    [message] = [message for message in messages if "tensors" in message]
    assert "tensors of unsupported parts are left out, such as" in message


def test_what_is_exported_has_no_vision_tower_and_the_other_names_of_published_files(
    small, checkpoint, tmp_path
):
    small.save_pretrained(tmp_path)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, checkpoint[1]))
    vision = {name for name in theirs if "vision" in name or "multi_modal" in name}
    assert vision
    assert ours.keys() == theirs.keys() - vision


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_tensors_may_be_called_as_in_transformers_modules(checkpoint, small, prefix, tmp_path):
    """In its files, the encoder's layers have shorter names than in its modules."""
    theirs, directory = checkpoint
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    tensors = {
        name.replace("model.", prefix, 1): tensor.clone()
        for name, tensor in theirs.state_dict().items()
        if prefix or name.startswith("model.")
    }
    assert f"{prefix}encoder.text_model.norm.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = PidModel.from_pretrained(tmp_path)
    assert loaded.config == small.config
    jax.tree.map(
        lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0),
        *(
            jax.tree.map(lambda leaf: torch.tensor(leaf.tolist()), model.params)
            for model in (loaded, small)
        ),
    )


def test_a_head_of_its_own_is_named(checkpoint, tmp_path):
    _, directory = checkpoint
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.out_proj.weight"] = tensors["model.encoder.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not of this model: lm_head"):
        PidModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": {"text_config": 3}}, '"encoder.text_config" must be of type dict, but is 3'),
        (
            {"encoder": {"text_config": {**STACK, "head_dim": 0}}},
            '"encoder.text_config.head_dim" must be above 0',
        ),
        (
            {"decoder": {**STACK, "hidden_size": 24}},
            '"encoder.text_config.hidden_size" and "decoder.hidden_size" must agree, but are 32',
        ),
        ({"tie_word_embeddings": False}, '"tie_word_embeddings": False is not supported'),
        (
            {"decoder": {**STACK, "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}},
            "\"decoder.rope_parameters.full_attention.rope_type\": 'yarn' is not supported",
        ),
    ],
)
def test_a_config_that_is_not_supported_is_named(change, message):
    written = {"model_type": "t5gemma2", "encoder": {"text_config": STACK}, "decoder": STACK}
    with pytest.raises(UserError) as error:
        models.build({**written, **change})
    assert message in str(error.value)


def test_a_config_of_transformers_4_is_read_as_it_was_meant():
    old = {
        **{key: value for key, value in STACK.items() if key != "rope_parameters"},
        "rope_theta": 2e6,
        "rope_local_base_freq": 3e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    config = models.config_from_hf(
        {"model_type": "t5gemma2", "encoder": {"text_config": STACK}, "decoder": old}
    )
    assert config.decoder.full_rotation == Rotation(2e6, 8)
    assert config.decoder.sliding_rotation == Rotation(3e4)
    assert config.encoder.full_rotation == Rotation(1e6, 8)
    assert config.encoder.layer_types == ("sliding_attention", "full_attention")
    assert models.config_from_hf(config.to_hf()) == config

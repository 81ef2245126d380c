"""T5Gemma against transformers, on random weights, and what only T5Gemma has."""

from pathlib import Path
from typing import Any

import jax
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict

from pid_jax import models
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.models import t5gemma
from pid_jax.models.positions import Rotation
from pid_jax.models.t5gemma.configuration import FULL, SLIDING
from tests.helpers import parity, transformers_models
from tests.helpers.parity import DOCUMENTS, PROMPTS, TARGETS, Parity
from tests.helpers.transformers_models import resemble_all

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

TURN = 6
"""Ends a turn: of instruction-tuned checkpoints an end token beside the usual one."""
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
    "two tokens end outputs": {"eos_token_id": [1, TURN], "seed": 5},
}


def make(variant: str, directory: Path) -> Any:
    """A random model of this variant, saved to `directory` as transformers saves it."""
    options = VARIANTS[variant]
    torch.manual_seed(options.get("seed", 1))
    capped = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}  # so that they show
    config = transformers.T5GemmaConfig(
        encoder={**STACK, **capped, **options.get("encoder", {})},
        decoder={**STACK, **capped, **options.get("decoder", {})},
        tie_word_embeddings=not options.get("untied", False),
        dropout_rate=0.1,
        attention_dropout=0.1,
        eos_token_id=options.get("eos_token_id", 1),
    )
    config._attn_implementation = "eager"  # the only one that caps
    model = transformers.T5GemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # from the usual start all outputs are alike
            parameter.add_(0.3 * torch.randn_like(parameter))
        head = resemble_all(model.lm_head.out_proj.weight.mul_(0.3))  # or outputs repeat a token
        if "eos_token_id" in options:
            resemble_all(head, end=TURN)
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


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    make(next(iter(VARIANTS)), directory)
    return PidModel.from_pretrained(directory)


def test_compaction_and_drafts_change_nothing(small):
    parity.assert_compaction_and_drafts_change_nothing(small)


def test_every_end_token_ends_outputs(tmp_path):
    """Which those are `generation_config.json` says, where it is there."""
    make("two tokens end outputs", tmp_path)
    model = PidModel.from_pretrained(tmp_path)
    parity.assert_compaction_and_drafts_change_nothing(model)
    unended = model.generate(DOCUMENTS, PROMPTS, max_new_tokens=9, min_new_tokens=9)
    assert all(
        len(one.tokens) == 9 and not {1, TURN} & set(one.tokens) for row in unended for one in row
    )

    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1]}')
    on = PidModel.from_pretrained(tmp_path).generate(DOCUMENTS, PROMPTS, max_new_tokens=9)
    longer = [one.tokens for row in on for one in row]
    assert any(TURN in tokens for tokens in longer)
    assert [
        one.tokens for row in model.generate(DOCUMENTS, PROMPTS, max_new_tokens=9) for one in row
    ] == [tokens[: tokens.index(TURN)] if TURN in tokens else tokens for tokens in longer]


def test_it_learns(small):
    parity.train_until_learned(small)


def test_a_description_for_training_from_scratch_is_filled_from_the_tokenizer(tmp_path):
    """What training adds to `model.architecture` stands beside the two stacks, not in them."""
    stack = {key: value for key, value in STACK.items() if key != "vocab_size"}
    from_tokenizer = {
        "vocab_size": 96,
        "pad_token_id": 3,
        "eos_token_id": 4,
        "decoder_start_token_id": 3,
    }
    model = models.build(
        {"model_type": "t5gemma", "encoder": stack, "decoder": stack, **from_tokenizer}
    )
    assert {key: getattr(model.config, key) for key in from_tokenizer} == from_tokenizer
    ours = PidModel(model, models.init_params(model, jax.random.key(0)))
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    [[score]] = ours.score(DOCUMENTS[1:2], [PROMPTS[0][:1]], [TARGETS[0][:1]])
    expected = transformers_models.log_probability(
        theirs, DOCUMENTS[1], PROMPTS[0][0], TARGETS[0][0]
    )
    assert score == pytest.approx(expected, abs=1e-4)


PUBLISHED = {
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
"""Of the 9B stack."""


def test_9b_2b_has_the_shapes_that_transformers_gives_it():
    written = {"encoder": PUBLISHED, "decoder": {}}
    with torch.device("meta"):
        theirs = transformers.T5GemmaForConditionalGeneration(transformers.T5GemmaConfig(**written))
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    model = models.build({"model_type": "t5gemma", **written})
    shapes = flatten_dict(models.abstract_params(model))
    paths = t5gemma.FAMILY.tensors(model.config)
    ours = {
        name: shapes[path].shape[::-1] if transposed else shapes[path].shape
        for name, (path, transposed) in paths.items()
    }
    del expected["lm_head.out_proj.weight"]  # tied
    assert ours == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": 3}, '"encoder" must be of type dict, but is 3'),
        ({"encoder": {"head_dim": "8"}}, '"encoder.head_dim" must be of type int'),
        ({"encoder": {"hidden_size": 0}}, '"encoder.hidden_size" must be above 0'),
        ({"decoder": {"attention_bias": True}}, '"decoder.attention_bias": True is not supported'),
        ({"decoder": {"hidden_activation": "x"}}, "\"decoder.hidden_activation\": 'x' is not"),
        ({"decoder": {"layer_types": ["full"]}}, '"decoder.layer_types" must be a list of "full_'),
        (
            {"decoder": {"layer_types": ["full_attention"]}},
            '"decoder.layer_types" lists 1 layers, but "decoder.num_hidden_layers" is 2',
        ),
        ({"decoder": {"num_key_value_heads": 3}}, "must be a multiple of"),
        ({"decoder": {"head_dim": 7}}, '"decoder.head_dim" must be even, but is 7'),
        ({"decoder": {"sliding_window": None}}, '"decoder.sliding_window" must not be null'),
        ({"encoder": {"vocab_size": 90}}, "must agree, but are 90 and 96"),
        (
            {"encoder": {"rope_parameters": {"rope_type": "yarn"}}},
            "\"encoder.rope_parameters.rope_type\": 'yarn' is not supported",
        ),
        (
            {"encoder": {"rope_scaling": {"type": "linear"}}},
            '"encoder.rope_parameters.factor" must be a number above 0, but is None',
        ),
        ({"is_encoder_decoder": False}, '"is_encoder_decoder": False is not supported'),
        ({"eos_token_id": [1, "2"]}, '"eos_token_id" must be a token id or a list of some'),
    ],
)
def test_a_config_that_is_not_supported_is_named(change, message):
    stacks = dict.fromkeys(("encoder", "decoder"), STACK)
    merged = {
        key: {**stacks[key], **value} if isinstance(value, dict) else value
        for key, value in change.items()
    }
    with pytest.raises(UserError) as error:
        models.build({"model_type": "t5gemma", **stacks, **merged})
    assert message in str(error.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "decoder",
    [
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_theta": 500},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "bos_token_id": 5},
        {"layer_types": ["full_attention", "full_attention"], "eos_token_id": [7, 3]},
    ],
)
def test_a_config_survives_being_written(decoder, tied):
    written = {
        "model_type": "t5gemma",
        "encoder": STACK,
        "decoder": {**STACK, **decoder},
        "tie_word_embeddings": tied,
    }
    config = models.config_from_hf(written)
    assert config.tie_word_embeddings == tied
    assert models.config_from_hf(config.to_hf()) == config
    # What only transformers' defaults, or older versions' keys, say:
    assert config.encoder.attn_logit_softcapping == 50
    assert config.encoder.layer_types == (SLIDING, FULL)
    assert config.decoder.full_rotation in (Rotation(500), Rotation(1e4, 4), Rotation(1e4))
    assert (config.decoder_start_token_id, config.eos_token_id) == (
        decoder.get("bos_token_id", 2),
        7 if "eos_token_id" in decoder else 1,
    )
    assert config.other_eos_token_ids == ((3,) if "eos_token_id" in decoder else ())

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pid_jax.checkpoints import huggingface
from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.training import assembly, mixed_batches
from tests.helpers import tiny_checkpoint, tiny_config


@pytest.fixture
def config():
    return tiny_config.get_config()


def test_evenly_spaced_examples_come_from_all_over():
    assert assembly.evenly_spaced(list(range(10)), 4) == [0, 2, 5, 7]
    assert assembly.evenly_spaced(list(range(3)), 4) == [0, 1, 2]
    assert assembly.evenly_spaced(list(range(3)), 0) == [0, 1, 2]


def test_activations_are_float32_on_a_cpu_unless_told_otherwise(config):
    assert jax.default_backend() == "cpu"
    assert assembly.activation_dtype(config) == jnp.float32
    config.model.dtype = "bfloat16"
    assert assembly.activation_dtype(config) == jnp.bfloat16


def test_from_scratch_the_tokenizer_decides_the_vocabulary(config):
    examples = assembly.read_examples(config, "train")
    model, params, tokenizer = assembly.new_model(config, examples)
    assert params is None
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 1)
    assert model.config.decoder_start_token_id == 0
    assert model.config.d_model == 16


def test_from_a_checkpoint_come_sizes_weights_and_tokenizer(config, checkpoint):
    config.model.init = str(checkpoint)
    config.train.dropout_rate = 0.3
    model, params, tokenizer = assembly.new_model(config, [])
    assert model.config.num_decoder_layers == 2
    assert model.config.dropout_rate == 0.3
    expected = tiny_checkpoint.make()
    assert len(tokenizer) == len(expected.tokenizer)
    jax.tree.map(np.testing.assert_array_equal, params, expected.params)


def test_a_token_that_the_checkpoint_has_not_is_refused_where_it_occurs(
    config, text_model, tmp_path
):
    """As <mask> of bart-large-cnn: the tokenizer has one token more than the model."""
    tokenizer = copy.deepcopy(text_model.tokenizer)
    tokenizer.add_tokens(["<mask>"], special_tokens=True)
    PidModel(text_model.model, text_model.params, tokenizer).save_pretrained(tmp_path)
    config.model.init = str(tmp_path)
    model, _, tokenizer = assembly.new_model(config, [])
    example = Example("d", "[user] a hotel", (Subtask("area", "hotel-area", "north"),))
    assembly.tokenize(config, [example], model, tokenizer)
    masked = dataclasses.replace(example, document="[user] a <mask>")
    with pytest.raises(UserError, match=r"token id \d+ \('<mask>'\), but ids go from"):
        assembly.tokenize(config, [masked], model, tokenizer)


def test_what_is_saved_of_a_model_comes_back(config, tmp_path):
    examples = assembly.read_examples(config, "train")
    model, _, tokenizer = assembly.new_model(config, examples)
    assembly.save_model(tmp_path, model, tokenizer)
    again, same_tokenizer = assembly.saved_model(config, tmp_path)
    assert again == model
    text = examples[0].document
    assert same_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]


BART = {
    "model_type": "bart",
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 32,
    "forced_bos_token_id": 2,
    "forced_eos_token_id": 1,
}


@pytest.mark.parametrize(
    ("method", "limits", "message"),
    [
        ("pid", (32, 16, 16), None),
        ("pie", (16, 16, 32), None),
        ("pid", (33, 16, 16), "config.data.document_tokens=33: the model's encoder has"),
        ("pid", (32, 17, 16), "prompt_tokens=17 and config.data.target_tokens=16: the model's dec"),
        ("pie", (17, 16, 16), "document_tokens=17 and config.data.prompt_tokens=16: the model's e"),
        ("pie", (16, 16, 33), "config.data.target_tokens=33: the model's decoder has positions"),
    ],
)
def test_limits_beyond_a_models_positions_are_refused(config, method, limits, message):
    config.model.architecture = ConfigDict(BART)
    config.method = method
    names = ("document_tokens", "prompt_tokens", "target_tokens")
    config.data.update(dict(zip(names, limits, strict=True)))
    examples = assembly.read_examples(config, "train")
    model, _, tokenizer = assembly.new_model(config, examples)
    assert model.config.forced_bos_token_id is None  # no target starts with it
    assert model.config.forced_eos_token_id == 1
    if message is None:
        assert len(assembly.tokenize(config, examples, model, tokenizer)) == len(examples)
        return
    with pytest.raises(UserError) as error:
        assembly.tokenize(config, examples, model, tokenizer)
    assert message in str(error.value)


def test_negative_targets_are_drawn_at_their_rate(config):
    examples = assembly.read_examples(config, "train")
    model, _, tokenizer = assembly.new_model(config, examples)
    config.data.max_prompts = 11
    config.data.packing = False
    source = assembly.tokenize(config, examples, model, tokenizer)
    none = tokenizer("none", add_special_tokens=False)["input_ids"] + [1]

    def share_of_none(rate):
        config.data.negative_rate = rate
        batches = mixed_batches.training_batches(config, [source], model, tokenizer)
        negative = total = 0
        for _, batch in zip(range(60), batches, strict=False):
            present = batch.target_mask.any(-1)
            is_none = (batch.targets[..., : len(none)] == none).all(-1)
            negative += (is_none & present).sum()
            total += present.sum()
        return negative / total

    in_data = np.mean(
        [subtask.target == "none" for example in examples for subtask in example.subtasks]
    )
    assert share_of_none(1.0) == pytest.approx(in_data, abs=0.03)
    # n of "none" and m of the others: at rate r the share is r n / (r n + m).
    assert share_of_none(0.2) == pytest.approx(
        0.2 * in_data / (0.2 * in_data + 1 - in_data), abs=0.05
    )


@pytest.mark.parametrize("beside", ["weights", "model"])  # the latter as a run has it
def test_how_a_checkpoint_generates_is_saved_except_for_lengths(
    config, text_model, tmp_path, beside
):
    said = {"num_beams": 4, "length_penalty": 2.0, "min_length": 56, "max_length": 142}
    start = PidModel(text_model.model, text_model.params, text_model.tokenizer, said)
    start.save_pretrained(tmp_path / "start")
    (tmp_path / "start" / beside).mkdir()
    config.model.init = str(tmp_path / "start")
    model, _, tokenizer = assembly.new_model(config, [])
    assembly.save_model(tmp_path / "run", model, tokenizer, assembly.generation_of(config))
    saved = huggingface.read_generation(tmp_path / "run")
    assert saved.items() >= {"num_beams": 4, "length_penalty": 2.0}.items()
    assert not saved.keys() & {"min_length", "max_length"}

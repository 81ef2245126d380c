"""Warm starts on a mesh of eight devices, and from checkpoints of other models."""

import copy
import json
import logging

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from pid_jax import models
from pid_jax.checkpoints import huggingface
from pid_jax.checkpoints.partial import PartialInit
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.training import assembly
from pid_jax.training import config as configuration
from pid_jax.training.loop import train
from tests.helpers import tiny_config, tiny_families
from tests.helpers.several_devices import result_of

SCRIPT = """
import json, sys
from pathlib import Path
import jax
from pid_jax import sharding
from pid_jax.training import assembly, loop
from tests.helpers import tiny_config

checkpoint, folder = sys.argv[1:]
seen = {}
new_model = assembly.new_model


def spy(config, examples, mesh=None):
    model, params, tokenizer = new_model(config, examples, mesh)
    seen["mesh"] = dict(mesh.shape)
    table = params["shared"]["embedding"]
    seen["share"] = [shard.data.shape[1] for shard in table.addressable_shards]
    return model, params, tokenizer


assembly.new_model = spy
for name, sizes in {"data": (8, 1), "fsdp": (1, 8)}.items():
    config = tiny_config.get_config()
    config.model.init = checkpoint
    config.optimizer.warmup_steps = 0
    config.mesh.data, config.mesh.fsdp = sizes
    config.data.batch_size = 8
    config.train.steps = 3
    workdir = Path(folder) / name
    loop.train(config, workdir)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    seen[name] = [line["loss"] for line in lines if line["split"] == "train"]
json.dump(seen, sys.stdout)
"""


def test_a_warm_start_splits_the_parameters_as_the_run_does(checkpoint, tmp_path):
    seen = result_of(SCRIPT, str(checkpoint), str(tmp_path), devices=8)
    assert seen["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert seen["share"] == [2] * 8  # of 16 features
    assert len(seen["data"]) == 3
    np.testing.assert_allclose(seen["fsdp"], seen["data"], rtol=1e-5)


@pytest.fixture
def config(checkpoint):
    config = tiny_config.get_config()
    config.model.init = str(checkpoint)
    config.optimizer.warmup_steps = 0
    return config


def started(config):
    model, params, tokenizer = assembly.new_model(config, [])
    return model, flatten_dict(params), tokenizer


def from_random(config, model):
    """The parameters of a run from random parameters with the same seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return flatten_dict(models.init_params(model, key))


def test_without_the_option_another_model_is_an_error(config, tmp_path, text_model):
    text_model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"num_layers": 2}))
    config.model.init = str(tmp_path)
    with pytest.raises(
        UserError, match=r"missing: encoder\.block\.1\.layer\.0\.SelfAttention\.k\.weight"
    ):
        assembly.new_model(config, [])


def test_new_layers_are_initialised_and_named(config, text_model, caplog):
    config.model.partial_init = True
    config.model.init_architecture = ConfigDict({"num_layers": 2})
    with caplog.at_level(logging.INFO):
        model, params, _ = started(config)
    assert model.config.num_layers == 2
    expected, random = flatten_dict(text_model.params), from_random(config, model)
    added = params.keys() - expected.keys()
    assert {path[:2] for path in added} == {("encoder", "layers_1")}
    for path, leaf in params.items():
        if path in added:  # computed in a program of its own
            np.testing.assert_allclose(leaf, random[path], rtol=1e-6)
        else:
            np.testing.assert_array_equal(leaf, expected[path])
    assert len(caplog.messages) == len(added) == 9
    name = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
    assert f"partial_init: {name} is new and initialised" in caplog.messages


def test_layers_that_the_model_has_not_are_left_out_and_named(config, text_model, caplog):
    config.model.partial_init = True
    config.model.init_architecture = ConfigDict({"num_decoder_layers": 1})
    _, params, _ = started(config)
    expected = flatten_dict(text_model.params)
    assert {path[:2] for path in expected.keys() - params.keys()} == {("decoder", "layers_1")}
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, expected[path])
    name = "decoder.block.1.layer.1.EncDecAttention.q.weight"
    assert f"partial_init: {name} of the checkpoint is left out" in caplog.messages


def test_a_tensor_of_another_shape_is_left_out_and_initialised(config, text_model, caplog):
    config.model.partial_init = True
    config.model.init_architecture = ConfigDict({"d_ff": 48})
    model, params, _ = started(config)
    random, expected = from_random(config, model), flatten_dict(text_model.params)
    kernel = ("encoder", "layers_0", "feed_forward", "wi_0", "kernel")
    np.testing.assert_allclose(params[kernel], random[kernel], rtol=1e-6)
    norm = ("encoder", "layers_0", "feed_forward_norm", "scale")
    np.testing.assert_array_equal(params[norm], expected[norm])
    name = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    assert f"partial_init: {name} is new and initialised" in caplog.messages
    assert f"partial_init: {name} of the checkpoint is left out" in caplog.messages


def test_tokens_of_a_larger_tokenizer_extend_the_vocabulary(config, text_model, tmp_path, caplog):

    tokenizer = copy.deepcopy(text_model.tokenizer)
    tokenizer.add_tokens(["<area>", "<price>", "<name>"])
    tokenizer.save_pretrained(tmp_path)
    config.tokenizer.path = str(tmp_path)
    config.model.partial_init = True
    model, params, _ = started(config)
    tokens = text_model.config.vocab_size
    assert model.config.vocab_size == len(tokenizer) == tokens + 3
    table, random = params["shared", "embedding"], from_random(config, model)
    np.testing.assert_array_equal(table[:tokens], text_model.params["shared"]["embedding"])
    np.testing.assert_allclose(table[tokens:], random["shared", "embedding"][tokens:], rtol=1e-6)
    assert caplog.messages == [
        f"partial_init: shared.weight has {tokens} tokens in the checkpoint and {tokens + 3} in "
        f"the model: {tokens} come from the checkpoint"
    ]


def test_a_run_trains_from_a_checkpoint_with_fewer_layers(config, tmp_path):
    config.model.partial_init = True
    config.model.init_architecture = ConfigDict({"num_layers": 2})
    config.train.steps = 2
    assert train(config, tmp_path / "run") == 2
    assert PidModel.from_pretrained(tmp_path / "run").config.num_layers == 2
    config.train.steps = 3
    config.model.init_architecture = ConfigDict({"num_layers": 3})
    with pytest.raises(UserError, match=r"config.model.init_architecture.num_layers was 2, is 3"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("name", tiny_families.DISTINCT)
@pytest.mark.parametrize("tokens", [104, 88])
def test_every_family_takes_another_vocabulary(name, tokens, tmp_path):
    model = models.build(tiny_families.VARIANTS[name])
    params = models.init_params(model, jax.random.key(3))
    PidModel(model, params).save_pretrained(tmp_path)
    other, loaded, *_ = huggingface.load(
        tmp_path, partial_init=PartialInit(0, {"vocab_size": tokens})
    )
    assert other.config.vocab_size == tokens
    expected = flatten_dict(models.abstract_params(other))
    old = flatten_dict(params)
    for path, leaf in flatten_dict(loaded).items():
        assert (leaf.shape, leaf.dtype) == (expected[path].shape, np.float32)
        common = tuple(slice(min(pair)) for pair in zip(leaf.shape, old[path].shape, strict=True))
        np.testing.assert_array_equal(leaf[common], old[path][common])


def test_a_training_run_cannot_be_loaded_in_part(config, tmp_path):
    config.train.steps = 1
    train(config, tmp_path / "run")
    config.model.init = str(tmp_path / "run")
    config.model.partial_init = True
    with pytest.raises(UserError, match="no part can be loaded: export it"):
        assembly.new_model(config, [])


def test_options_of_a_partial_load_need_a_checkpoint():
    config = configuration.default()
    config.model.partial_init = True
    with pytest.raises(UserError, match=r"partial_init needs a checkpoint in config.model.init"):
        configuration.check(config)
    config.model.partial_init = False
    config.model.init = "somewhere"
    config.model.init_architecture = ConfigDict({"num_layers": 2})
    with pytest.raises(UserError, match=r"init_architecture needs config.model.partial_init=True"):
        configuration.check(config)


def test_keys_of_the_architecture_can_be_given_on_the_command_line():
    overrides = [
        "--config.model.init=t5-small",
        "--config.model.partial_init=True",
        "--config.model.init_architecture.num_layers=8",
    ]
    config = configuration.load("quickstart", overrides)
    assert config.model.init_architecture.to_dict() == {"num_layers": 8}

"""Whatever a path holds is recognised by what it is; what is no checkpoint gets a true sentence."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from pid_jax.checkpoints import contents, huggingface, identity, orbax, tensors
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers.training_checkpoints import numbers

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 242043056\n"


@pytest.fixture
def copy(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="module")
def run(text_model, tmp_path_factory):
    """A training run of two checkpoints."""
    workdir = tmp_path_factory.mktemp("run")
    config = {"method": "pie", "checkpoint": {"best_metric": "loss"}}
    (workdir / "config.json").write_text(json.dumps(config))
    huggingface.save_config(workdir / "model", text_model.config, text_model.tokenizer)
    with orbax.RunCheckpoints(workdir, recent=2, best_metric="loss") as checkpoints:
        for step, loss in ((6, 1.0), (12, 2.0)):
            checkpoints.save(step, {"params": text_model.params}, numbers(), {"loss": loss})
        checkpoints.wait()
    return workdir


def refusal(path):
    with pytest.raises(UserError) as error:
        PidModel.from_pretrained(path)
    return str(error.value)


@pytest.mark.parametrize("folder", ["checkpoints", "model"])
def test_a_hugging_face_directory_may_have_folders_named_as_those_of_a_run(copy, folder):
    (copy / folder).mkdir()
    assert PidModel.from_pretrained(copy).tokenizer is not None
    assert orbax.trained_method(copy) == "pid"
    identity.digest(copy)


def test_a_run_is_known_by_the_keys_of_its_config(run, text_model):
    assert PidModel.from_pretrained(run).config == text_model.config
    assert orbax.trained_method(run) == "pie"
    assert contents.is_run(run)


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/12/state", "model"])
def test_for_a_part_of_a_run_the_run_is_named(run, part):
    assert f"a part of the training run {run}" in refusal(run / part)


def test_a_run_without_its_config_is_said_to_lack_it(tmp_path):
    (tmp_path / "model").mkdir()
    assert "a training run without config.json" in refusal(tmp_path)


def test_a_run_without_a_checkpoint_says_so(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path / "config.json")
    assert "has no checkpoint yet" in refusal(tmp_path)


def test_a_trainers_folder_names_its_last_checkpoint(copy):
    parent = copy.parent / "trainer"
    for step in ("checkpoint-1000", "checkpoint-500"):
        shutil.copytree(copy, parent / step)
    assert f"name one of them, for example the last, {parent / 'checkpoint-1000'}" in refusal(
        parent
    )
    PidModel.from_pretrained(parent / "checkpoint-1000")


def test_an_adapter_without_its_base_names_both(tmp_path):
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "./absent"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    save_file({}, tmp_path / "adapter_model.safetensors")
    assert f"{tmp_path}: an adapter of ./absent: ./absent: no such directory" in refusal(tmp_path)


def test_an_adapter_beside_the_config_of_its_base_is_an_adapter_still(copy):
    (copy / "model.safetensors").unlink()
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "t5-small"}')
    (copy / "adapter_model.safetensors").write_bytes(b"")
    assert f"{copy / 'adapter_config.json'}: " in refusal(copy)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"]
)
def test_a_pointer_of_git_lfs_is_called_one(copy, file):
    (copy / file).write_bytes(LFS)
    message = refusal(copy)
    assert str(copy / file) in message
    assert "a pointer of Git LFS" in message


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_empty_file_is_called_empty(copy, file):
    (copy / file).write_bytes(b"")
    assert refusal(copy).startswith(f"{copy / file}: the file is empty")


@pytest.mark.parametrize(
    ("file", "option"), [("flax_model.msgpack", "from_flax"), ("tf_model.h5", "from_tf")]
)
def test_weights_of_other_frameworks_are_converted_by_transformers_4(copy, file, option):
    (copy / "model.safetensors").rename(copy / file)
    message = refusal(copy)
    assert "transformers 4" in message
    assert f"{option}=True" in message
    assert "pickle" not in message


def test_the_optimizer_of_a_trainer_is_no_weights(copy):
    (copy / "model.safetensors").rename(copy / "optimizer.pt")
    message = refusal(copy)
    assert "neither model.safetensors nor" in message
    assert "optimizer.pt" in message


def test_a_file_is_told_from_its_directory(copy):
    assert "a file: name the directory" in refusal(copy / "model.safetensors")


def test_an_empty_directory_is_called_empty(tmp_path):
    assert "the directory is empty" in refusal(tmp_path)


def test_a_directory_of_something_else_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "config.json: no such file; the directory contains notes.txt" in refusal(tmp_path)


def test_a_link_to_nowhere_is_called_one(copy):
    weights = copy / "model.safetensors"
    weights.unlink()
    weights.symlink_to("gone/weights")
    assert f"{weights}: a symbolic link to gone/weights, which does not exist" in refusal(copy)


def test_a_checkpoint_may_be_made_of_links(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert PidModel.from_pretrained(tmp_path).tokenizer is not None


def test_what_may_not_be_read_is_named(copy, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, os.strerror(13), str(copy))

    monkeypatch.setattr(tensors, "open_weights", refuse)
    assert refusal(copy) == f"{copy}: cannot be read (Permission denied)"

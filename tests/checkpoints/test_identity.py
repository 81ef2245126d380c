"""Checkpoints are told apart by what is in them."""

import json
import shutil
from pathlib import Path

import grain
import jax.numpy as jnp
import pytest

from pid_jax.checkpoints import identity
from pid_jax.checkpoints.orbax import CONFIG, MODEL, RunCheckpoints
from pid_jax.errors import UserError


def test_a_copy_is_the_same_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy" / "README.md").write_text("not read by the model")
    assert identity.digest(tmp_path / "copy") == identity.digest(checkpoint)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_byte_makes_another(checkpoint: Path, tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    content = bytearray((copy / file).read_bytes())
    content[-3] ^= 1
    (copy / file).write_bytes(content)
    assert identity.digest(copy) != identity.digest(checkpoint)


def test_so_does_each_file_that_may_be_read(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    digests = {identity.digest(copy)}
    files = ("merges.txt", "vocab.json", "spiece.model", "generation_config.json")
    for file in files:
        (copy / file).write_text("other")
        digests.add(identity.digest(copy))
    assert len(digests) == 1 + len(files)


def test_a_run_is_another_once_it_did_better(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / CONFIG).write_text(json.dumps({"checkpoint": {"best_metric": "loss"}}))
    shutil.copytree(checkpoint, run / MODEL)
    digests = []
    with RunCheckpoints(run, recent=1, best_metric="loss") as checkpoints:
        for step, loss in enumerate((2.0, 1.0, 3.0)):
            state = {"params": {"kernel": jnp.full((2,), loss)}}
            checkpoints.save(
                step, state, iter(grain.MapDataset.range(9).to_iter_dataset()), {"loss": loss}
            )
            checkpoints.wait()
            digests.append(identity.digest(run))
    first, better, worse = digests
    assert first != better
    assert better == worse
    moved = run.rename(tmp_path / "moved")
    assert identity.digest(moved) == better


def test_a_missing_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory"):
        identity.digest(tmp_path / "nowhere")

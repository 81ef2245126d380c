"""A run's directory is safe whatever other processes do with it at the same time."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import directory_lock
from pid_jax.checkpoints import identity
from pid_jax.checkpoints.orbax import (
    CHECKPOINTS,
    CONFIG,
    RunCheckpoints,
    read_checkpoint,
    saved_steps,
)
from pid_jax.checkpoints.trained_model import load_params
from pid_jax.errors import UserError
from tests.helpers.training_checkpoints import numbers, write_run

ROOT = Path(__file__).parents[2]

SAVING = """
import sys
import jax.numpy as jnp
from pid_jax.checkpoints.orbax import RunCheckpoints
from tests.helpers.training_checkpoints import numbers

workdir, seconds = sys.argv[1], float(sys.argv[2])
import time
until, step = time.monotonic() + seconds, 1
with RunCheckpoints(workdir, recent=1, best_metric="loss") as checkpoints:
    while time.monotonic() < until:
        # Every checkpoint is the best so far, so that the one before is removed at once.
        params = {str(i): jnp.full((50, 40), float(step)) for i in range(8)}
        checkpoints.save(step, {"params": params}, numbers(), {"loss": -float(step)})
        checkpoints.wait()
        step += 1
print(step - 1)
"""


def test_no_load_fails_while_checkpoints_come_and_go(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps({"checkpoint": {"best_metric": "loss"}}))
    command = [sys.executable, "-c", SAVING, str(tmp_path), "4"]
    loaded = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as training:
        while training.poll() is None:
            if not saved_steps(tmp_path):
                time.sleep(0.01)
                continue
            params = load_params(tmp_path, "last" if len(loaded) % 2 else "best")
            steps = {float(x) for leaf in jax.tree.leaves(params) for x in np.unique(leaf)}
            assert len(steps) == 1, "parts of several checkpoints"
            loaded += steps
            identity.digest(tmp_path) if (tmp_path / "model").exists() else None
        saved = int(training.stdout.read())
    assert training.returncode == 0
    assert saved > 10
    assert len(set(loaded)) > 5, "nothing came and went"
    assert loaded == sorted(loaded)
    assert saved_steps(tmp_path) in ([saved], [saved - 1, saved])
    left = {path.name for path in (tmp_path / CHECKPOINTS).iterdir()}
    assert left == {str(step) for step in saved_steps(tmp_path)}


def test_what_is_being_read_is_removed_later(tmp_path):
    write_run(tmp_path, [{"loss": 3.0}], recent=1)
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:

        def save(step):
            data = {"params": {"kernel": jnp.full((2,), float(step))}}
            checkpoints.save(step, data, numbers(), {"loss": 3.0 - step})
            checkpoints.wait()

        def read(path):
            save(2)
            assert saved_steps(tmp_path) == [1, 2]
            assert (path / "state" / "_METADATA").exists()

        read_checkpoint(tmp_path, "last", read)
        save(3)
        assert saved_steps(tmp_path) == [3]


def test_where_one_is_about_to_be_removed_another_is_read(tmp_path, monkeypatch):
    write_run(tmp_path, [{"loss": 1.0}, {"loss": 2.0}])
    paths = []

    def read(path):
        paths.append(path.name)
        if len(paths) == 1:  # as on a file system without locks
            path.rename(path.with_name(".removing-1"))
            raise FileNotFoundError(path)

    read_checkpoint(tmp_path, "best", read)
    assert paths == ["1", "2"]


def test_what_a_killed_run_left_half_removed_is_no_checkpoint(tmp_path):
    write_run(tmp_path, [{"loss": 1.0}, {"loss": 2.0}])
    half = tmp_path / CHECKPOINTS / ".removing-1"
    (tmp_path / CHECKPOINTS / "1").rename(half)
    assert saved_steps(tmp_path) == [2]
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        assert not half.exists()
        assert checkpoints.best_step == 2


def test_readers_share_and_a_writer_is_alone(tmp_path):
    with directory_lock.reading(tmp_path) as one, directory_lock.reading(tmp_path) as other:
        assert (one, other) == (True, True)
        with directory_lock.unread(tmp_path) as unread:
            assert not unread
        with pytest.raises(UserError, match="is at work"):
            directory_lock.writing(tmp_path, "somebody is at work").__enter__()
    with directory_lock.writing(tmp_path), directory_lock.reading(tmp_path) as late:
        assert not late
    with directory_lock.reading(tmp_path / "nowhere") as nothing:
        assert not nothing

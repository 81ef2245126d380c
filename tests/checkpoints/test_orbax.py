import errno
import json
import os
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax.checkpoints import huggingface, manifest, verification
from pid_jax.checkpoints.orbax import (
    CHECKPOINTS,
    CONFIG,
    MODEL,
    RunCheckpoints,
    saved_steps,
)
from pid_jax.checkpoints.trained_model import load_model, load_params
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers.training_checkpoints import abstract, numbers, state_of, write_run


def test_state_and_data_position_come_back_exactly(tmp_path):
    data = numbers()
    for _ in range(7):
        next(data)
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        checkpoints.save(7, state_of(7), data)
    following = [int(next(data)) for _ in range(5)]

    again = numbers()
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        restored = checkpoints.restore(7, abstract(), again)
    jax.tree.map(np.testing.assert_array_equal, restored, state_of(7))
    assert jax.tree.structure(restored) == jax.tree.structure(state_of(7))
    assert [int(next(again)) for _ in range(5)] == following


def test_steps_after_a_save_do_not_reach_into_it(tmp_path):
    # The state's buffers are given away to the next step while the save is still being written.
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = {"params": {"kernel": jnp.zeros((1000, 1000))}}
    with RunCheckpoints(tmp_path, recent=9, best_metric="loss") as checkpoints:
        for number in (1, 2, 3):
            state = step(state)
            checkpoints.save(number, state, numbers())
    for number in (1, 2, 3):
        np.testing.assert_array_equal(load_params(tmp_path, number)["kernel"], float(number))


def test_the_last_two_and_the_best_stay(tmp_path):
    metrics = [{"loss": loss} for loss in (3.0, 1.0, 2.0, 4.0, 5.0)]
    assert write_run(tmp_path, metrics) == ([2, 4, 5], 2)


def test_of_anything_but_a_loss_the_highest_is_best(tmp_path):
    metrics = [{"exact_match": value} for value in (0.1, 0.5, 0.3, 0.2)]
    assert write_run(tmp_path, metrics, best_metric="exact_match", recent=1) == ([2, 4], 2)


def test_of_equals_the_later_is_best(tmp_path):
    metrics = [{"loss": 1.0}, {"loss": 1.0}, {"loss": 2.0}]
    assert write_run(tmp_path, metrics, recent=1) == ([2, 3], 2)


def test_a_checkpoint_without_an_evaluation_is_never_best(tmp_path):
    assert write_run(tmp_path, [{"loss": 9.0}, None, None], recent=1) == ([1, 3], 1)


def test_parameters_are_loaded_by_rank_or_step(tmp_path):
    write_run(tmp_path, [{"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}])
    for step, expected in (("best", 1.0), ("last", 3.0), (2, 2.0)):
        np.testing.assert_array_equal(load_params(tmp_path, step)["kernel"], expected)


def test_without_an_evaluation_the_last_is_best(tmp_path):
    write_run(tmp_path, [None, None])
    np.testing.assert_array_equal(load_params(tmp_path)["kernel"], 2.0)


def test_parameters_come_in_the_requested_dtype(tmp_path):
    write_run(tmp_path, [None])
    assert load_params(tmp_path)["kernel"].dtype == jnp.float32
    assert load_params(tmp_path, dtype="bfloat16")["kernel"].dtype == jnp.bfloat16


def test_a_step_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    write_run(tmp_path, [None, None])
    with pytest.raises(UserError, match="no checkpoint of step 7: there are 1, 2"):
        load_params(tmp_path, 7)


def test_a_run_without_a_checkpoint_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_params(tmp_path)


def test_what_a_killed_process_left_half_written_is_no_checkpoint(tmp_path):
    write_run(tmp_path, [None])
    saving = tmp_path / CHECKPOINTS / ".saving"
    # Of Orbax, of Orbax in an earlier version, and complete but without a manifest.
    (saving / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    unfinished = tmp_path / CHECKPOINTS / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    shutil.copytree(tmp_path / CHECKPOINTS / "1", saving / "3")
    np.testing.assert_array_equal(load_params(tmp_path, "last")["kernel"], 1.0)
    assert saved_steps(tmp_path) == [1]
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss"):
        assert not unfinished.exists()
        assert not (saving / "3").exists()
    assert not saving.exists()


def test_a_checkpoint_is_visible_with_its_manifest_which_no_step_waits_for(tmp_path, monkeypatch):
    go_on = threading.Event()
    write = verification.write_manifest

    def slowly(*arguments):
        assert go_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(verification, "write_manifest", slowly)
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        checkpoints.save(1, state_of(1), numbers())
        assert saved_steps(tmp_path) == []
        go_on.set()
        checkpoints.wait()
        assert saved_steps(tmp_path) == [1]
        assert manifest.read(tmp_path / CHECKPOINTS / "1") is not None


def test_an_error_of_the_manifest_is_raised_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    write_run(tmp_path, [{"loss": 1.0}], recent=1)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(verification, "write_manifest", full)
    with (
        pytest.raises(OSError, match="No space left"),
        RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints,
    ):
        checkpoints.save(2, state_of(2), numbers())
    assert saved_steps(tmp_path) == [1]
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["1"]


def test_later_checkpoints_are_renamed_where_a_run_resumes_from_an_earlier_one(tmp_path):
    write_run(tmp_path, [{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0}], recent=3)
    with RunCheckpoints(tmp_path, recent=2, best_metric="loss", resume_after=1) as checkpoints:
        assert checkpoints.best_step == 1
        checkpoints.save(2, state_of(2), numbers())
    names = sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir())
    assert names == ["1", "2", "damaged-2", "damaged-3"]


def test_a_run_is_loaded_as_a_model(tmp_path, tiny_model):
    huggingface.save_config(tmp_path / MODEL, tiny_model.config, None)
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        checkpoints.save(1, {"params": tiny_model.params}, numbers())
    model, params, tokenizer, _ = load_model(tmp_path, "last")
    assert model.config == tiny_model.config
    assert tokenizer is None
    jax.tree.map(np.testing.assert_array_equal, params, tiny_model.params)


def test_a_run_is_loaded_in_8_bits(tmp_path, tiny_model):
    huggingface.save_config(tmp_path / MODEL, tiny_model.config, None)
    (tmp_path / CONFIG).write_text(json.dumps({"checkpoint": {"best_metric": "loss"}}))
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        checkpoints.save(1, {"params": tiny_model.params}, numbers())
    loaded = PidModel.from_pretrained(tmp_path, weights="int8")
    table = np.asarray(tiny_model.params["shared"]["embedding"])
    own = loaded.params["shared"]
    assert own["embedding"].dtype == jnp.int8
    error = np.abs(
        np.asarray(own["embedding"]) * np.asarray(own["embedding_scale"])[:, None] - table
    )
    # Half a step of each token's scale, and the rounding of float32.
    assert (error <= np.abs(table).max(axis=1, keepdims=True) / 254 * (1 + 1e-5)).all()

import dataclasses
import errno
import json
import logging
import os
import signal
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.record_writer import RecordWriter

from pid_jax.checkpoints import ranking
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.training import config as configuration
from pid_jax.training import loop, mixed_batches, run_checks, validation
from pid_jax.training.step import BatchEvaluation
from pid_jax.training.stop_signals import Interrupted
from tests.helpers import tiny_config


@dataclasses.dataclass
class Stop:
    requested: bool = False


class GivenBatch(NamedTuple):
    """Instead of a batch: the result of its evaluation."""

    evaluation: BatchEvaluation

    @property
    def shape(self):
        return self.evaluation.correct.shape


def as_given(params, batch, *, label):
    return batch.evaluation


def evaluated(batches, counts, stop=None):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    parts = [mixed_batches.PartEvaluation("whole", batches, counts)]
    return validation.evaluate_parts(None, parts, as_given, here, stop or Stop())


def batch(correct, present, loss=1.0, correct_tokens=1.0, target_tokens=2.0):
    return GivenBatch(
        BatchEvaluation(
            np.float32(loss),
            np.float32(correct_tokens),
            np.float32(target_tokens),
            np.array(correct, bool),
            np.array(present, bool),
        )
    )


def test_a_document_counts_when_all_its_targets_are_right():
    figures = evaluated(
        [
            # Two documents of 2 and 1 subtasks; what absent slots claim does not matter.
            batch([[1, 1], [1, 0]], [[1, 1], [1, 0]], loss=4.0, target_tokens=6.0),
            # One of 2, one of them wrong, and an absent document.
            batch([[1, 0], [1, 1]], [[1, 1], [0, 0]], loss=2.0, target_tokens=2.0),
        ],
        [2, 1, 2],
    )
    assert figures == {
        "loss": 6 / 8,
        "token_accuracy": 2 / 8,
        "exact_match": 4 / 5,
        "joint_exact_match": pytest.approx(2 / 3),
    }


def test_a_document_counts_the_same_when_each_prompt_has_a_row_of_its_own():
    # Prompt in encoder: five documents of one prompt, and three absent ones.
    rows = batch([[1], [1], [1], [1], [0], [1], [1], [1]], [[1]] * 5 + [[0]] * 3)
    figures = evaluated([rows], [2, 1, 2])
    assert figures["exact_match"] == 4 / 5
    assert figures["joint_exact_match"] == pytest.approx(2 / 3)


def test_an_evaluation_ends_at_a_request_to_stop():
    assert evaluated([batch([[1]], [[1]])], [1], Stop(requested=True)) is None


def tiny(**changes):
    config = tiny_config.get_config()
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return [line["loss"] for line in lines(workdir) if line["split"] == "train"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run of 24 steps."""
    workdir = tmp_path_factory.mktemp("finished")
    assert loop.train(tiny(), workdir) == 24
    return workdir


def test_the_loss_falls(finished):
    curve = losses(finished)
    assert len(curve) == 24
    assert np.mean(curve[-4:]) < 0.8 * np.mean(curve[:4])


def test_evaluations_come_every_so_often_and_at_the_end(finished):
    steps = [line["step"] for line in lines(finished) if line["split"] == "validation"]
    assert steps == [8, 16, 24]


def test_the_workdir_is_a_model(finished):
    model = PidModel.from_pretrained(finished)
    assert model.config.d_model == 16
    (row,) = model.generate(["[user] a cheap hotel please"], [["hotel-area"]], max_new_tokens=3)
    assert isinstance(row[0].text, str)


def test_the_workdir_holds_its_configuration(finished):
    saved = json.loads((finished / "config.json").read_text())
    assert configuration.differences(saved, tiny()) == {}


def test_a_finished_run_is_left_alone(finished, caplog):
    before = (finished / "metrics.jsonl").read_bytes()
    with caplog.at_level(logging.INFO, "pid_jax"):
        assert loop.train(tiny(), finished) == 24
    assert "is trained: step 24 of 24" in caplog.text
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_run_may_continue_with_another_packing(finished, caplog):
    config = tiny()
    config.data.packing = not config.data.packing
    run_checks.check_same_run(finished, config)
    assert "the run continues with the new value" in caplog.text


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed while replacing"])
def test_an_interrupted_evaluation_is_repeated_by_the_resumed_run(
    finished, tmp_path, monkeypatch, killed
):
    calls = []

    def interrupted(params, parts, program, rows, stop):
        calls.append(1)
        if len(calls) < 2:
            return validation.evaluate_parts(params, parts, program, rows, stop)
        stop.received = signal.SIGTERM
        return None

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate_parts", interrupted)
        with pytest.raises(Interrupted, match="stopped after step 16"):
            loop.train(tiny(), tmp_path)
    assert lines(tmp_path)[-1]["split"] == "train"
    checkpoint = tmp_path / "checkpoints" / "16"
    if killed:
        checkpoint.rename(checkpoint.with_name(".replaced-16"))
    assert loop.train(tiny(), tmp_path) == 24
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    metric = tiny().checkpoint.best_metric
    assert ranking.ranked(tmp_path, metric) == ranking.ranked(finished, metric)
    assert not list((tmp_path / "checkpoints").glob(".replaced*"))


def test_another_configuration_is_refused_by_the_keys_that_differ(finished):
    config = tiny(data__batch_size=8)
    config.seed = 5
    with pytest.raises(UserError) as error:
        loop.train(config, finished)
    assert "config.data.batch_size was 4, is 8" in str(error.value)
    assert "config.seed was 0, is 5" in str(error.value)


@pytest.mark.parametrize("content", ['{"model_type": "t5"}', '{"checkpoint": {}, "model_type": 1}'])
def test_the_directory_of_another_model_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is not that of a training run"):
        loop.train(tiny(), tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == [content]


def test_targets_that_do_not_come_back_are_counted_before_the_first_step(tmp_path, caplog):
    subtasks = [
        {"id": "a", "prompt": "price", "target": "price < 5 { cheap }"},
        {"id": "b", "prompt": "end", "target": "a </s> b"},
    ]
    line = json.dumps({"id": "d", "document": "cheap", "subtasks": subtasks})
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(line + "\n")
    config = tiny_config.get_config()
    config.data.task, config.data.path = "jsonl", str(tmp_path)
    config.data.options = ConfigDict()
    (tmp_path / "run").mkdir()
    loop._prepare(config, tmp_path / "run", resuming=False, other_data=False)
    for split in ("train", "validation"):
        assert (
            f"{split}: 1 of 2 targets change when encoded and decoded, the first is "
            "'a </s> b' → 'a   b'" in caplog.text
        )


def test_a_run_starts_from_the_model_of_another(finished, tmp_path):
    config = tiny(model__init=str(finished), train__steps=2, optimizer__warmup_steps=1)
    loop.train(config, tmp_path)
    # Not where random parameters start, but where the other run ended.
    assert losses(tmp_path)[0] < 0.8 * losses(finished)[0]


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    config = tiny(optimizer__schedule="constant", checkpoint__every_steps=2, train__steps=9)
    config.evaluation.every_steps = 100
    loop.train(tiny(optimizer__schedule="constant", train__steps=4), tmp_path)
    config.optimizer.learning_rate = 1e38
    config.optimizer.clip_norm = 0.0
    with pytest.raises(loop.Diverged) as error:
        loop.train(config, tmp_path)
    step = int(str(error.value).split("step ")[1].split(":")[0])
    assert 5 <= step <= 9
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert max(saved) < step
    assert f"step {max(saved)} in {tmp_path} is intact" in str(error.value)
    params = PidModel.from_pretrained(tmp_path).params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_disk_that_is_full_for_events_first_ends_the_run_in_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "flush", full)
    with pytest.raises(UserError, match=r"^cannot write .*: No space left on device; nothing was"):
        loop.train(tiny(train__loggers=("tensorboard",)), tmp_path)


def test_prompt_in_encoder_trains_the_same_way(tmp_path):
    config = tiny(train__steps=4, optimizer__warmup_steps=1, evaluation__documents=3)
    config.method = "pie"
    loop.train(config, tmp_path)
    (validation,) = [line for line in lines(tmp_path) if line["split"] == "validation"]
    assert 0 <= validation["joint_exact_match"] <= validation["exact_match"] <= 1


def test_a_batch_that_devices_cannot_share_is_an_error_that_names_the_key():
    class Mesh:
        shape = {"data": 2, "fsdp": 2, "tensor": 1}  # noqa: RUF012

    with pytest.raises(UserError, match=r"config\.data\.batch_size is 6.*multiple of 4"):
        run_checks.check_divisible(tiny(data__batch_size=6), Mesh())

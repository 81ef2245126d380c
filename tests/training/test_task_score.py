"""The task's score during training: equal to that of eval.py, ranks checkpoints, ends a run."""

import json
import logging

import pytest

import eval as eval_command
from pid_jax import sharding
from pid_jax.checkpoints import contents, orbax, trained_model
from pid_jax.errors import UserError
from pid_jax.tasks import Report
from pid_jax.tasks.dialogue_state import DialogueStateTask
from pid_jax.training import loop, task_score
from pid_jax.training.stop_signals import StopSignals
from tests.helpers import tiny_config

METRIC = "task/slot_accuracy"


def config_of(**changes):
    config = tiny_config.get_config()
    config.evaluation.task_score_every_steps = 8
    config.evaluation.every_steps = 12
    config.checkpoint.best_metric = METRIC
    config.checkpoint.keep_last = 9
    config.train.loggers = ("tests.training.test_loggers:Mine",)
    config.train.profile_steps = "2:4"
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def lines(workdir, split):
    text = (workdir / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line for line in map(json.loads, text) if line["split"] == split}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run of 24 steps with scores at 8, 16 and 24."""
    workdir = tmp_path_factory.mktemp("scored")
    assert loop.train(config_of(), workdir) == 24
    return workdir


def test_scores_come_every_so_often_and_at_the_end(run):
    assert [*lines(run, "task")] == [8, 16, 24]
    assert [*lines(run, "validation")] == [12, 24]


@pytest.mark.parametrize("step", [8, 24])
def test_the_score_at_a_step_is_that_of_eval(run, tmp_path, step):
    eval_command.main(
        [
            f"--checkpoint={run / 'checkpoints' / str(step)}",
            f"--output={tmp_path}",
            "--split=validation",
            "--limit=16",
            "--evenly-spaced",
        ]
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    line = lines(run, "task")[step]
    assert {name: line[name] for name in metrics} == metrics
    assert 0 < metrics["slot_accuracy"] < 1


def test_the_best_checkpoint_is_that_of_the_best_score(run):
    scores = {step: line["slot_accuracy"] for step, line in lines(run, "task").items()}
    best = max(scores, key=lambda step: (scores[step], step))
    assert orbax.checkpoint_path(run, "best").name == str(best)


def test_loggers_receive_scores_speed_padding_and_no_times_are_in_the_file(run):
    received = [json.loads(line) for line in (run / "mine.jsonl").read_text().splitlines()]
    assert received[0] == ["opened", 0, 0]
    assert received[-1] == ["closed"]
    prefixes = {prefix for _, prefix, _ in received[1:-1]}
    assert prefixes == {"train", "validation", "task", ""}
    [speed] = [names for step, prefix, names in received[1:-1] if (step, prefix) == (4, "")]
    for name in ("input_seconds", "device_seconds", "host_seconds", "decoder_padding"):
        assert name in speed
    assert "mfu" not in speed  # of a CPU, whose peak rate is not known
    assert not (run / "events").exists()
    assert "seconds" not in (run / "metrics.jsonl").read_text()


def test_the_run_has_a_profile_and_its_environment(run):
    [profile] = (run / "profile").rglob("*.xplane.pb")
    assert profile.stat().st_size > 0
    [entry] = json.loads((run / "environment.json").read_text())
    assert entry["after_step"] == 0
    assert entry["config"]["checkpoint"]["best_metric"] == METRIC


@pytest.fixture
def scores(monkeypatch):
    """Reports of the task, one after the other, instead of those of its answers."""
    reports = []

    def score(self, examples, predictions):
        return reports[0]

    def evaluate(self, params, stop):
        return reports.pop(0) if len(reports) > 1 else reports[0]

    monkeypatch.setattr(DialogueStateTask, "score", score)
    monkeypatch.setattr(task_score.TaskScore, "__call__", evaluate)
    return reports


def of(*values, lower=frozenset()):
    return [Report({"rate": value}, lower_is_better=lower) for value in values]


def patient(**changes):
    return config_of(
        evaluation__task_score_every_steps=2,
        evaluation__every_steps=100,
        checkpoint__best_metric="task/rate",
        checkpoint__patience=2,
        checkpoint__keep_last=1,
        train__profile_steps="",
        **changes,
    )


def test_a_run_ends_when_the_score_no_longer_improves(tmp_path, scores, caplog):
    scores += of(0.1, 0.3, 0.3, 0.2, 0.9)
    with caplog.at_level(logging.INFO, "pid_jax"):
        assert loop.train(patient(), tmp_path) == 8
        assert [line["rate"] for line in lines(tmp_path, "task").values()] == [0.1, 0.3, 0.3, 0.2]
        assert "no better task/rate in 2 evaluations" in caplog.text
        # The same command finds it ended. With more patience it goes on.
        assert loop.train(patient(), tmp_path) == 8
        config = patient()
        config.checkpoint.patience = 3
        # 0.9 at step 10, and three times again.
        assert loop.train(config, tmp_path) == 16
    assert contents.saved_steps(tmp_path) == [16]


def test_the_lowest_score_is_best_where_the_report_says_so(tmp_path, scores):
    scores += of(0.5, 0.2, 0.3, 0.4, lower=frozenset({"rate"}))
    assert loop.train(patient(), tmp_path) == 8
    assert contents.saved_steps(tmp_path) == [4, 8]
    assert orbax.checkpoint_path(tmp_path, "best").name == "4"


def test_a_resumed_run_has_the_patience_of_the_whole_one(tmp_path, scores):
    values = 0.3, 0.2, 0.4, 0.1, 0.4
    scores += of(*values)
    assert loop.train(patient(), tmp_path / "whole") == 10
    scores[:] = of(*values)
    for steps in (4, 8, 24):
        config = patient(train__steps=steps, optimizer__schedule="constant")
        reached = loop.train(config, tmp_path / "resumed")
    assert reached == 10
    assert lines(tmp_path / "resumed", "task") == lines(tmp_path / "whole", "task")


def test_a_metric_that_the_task_lacks_is_refused_before_step_1(tmp_path):
    config = config_of(checkpoint__best_metric="task/rouge1")
    with pytest.raises(UserError, match=r"task/rouge1.*task/joint_goal_accuracy, task/slot_acc"):
        loop.train(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_signal_interrupts_the_generation(run, monkeypatch):
    stop = StopSignals()
    config = config_of(evaluation__batch_size=1)
    model = trained_model.load_model(run, 8)
    score = task_score.TaskScore(config, model[0].config, run, sharding.make_mesh())
    batches = []
    original = task_score._seen_by_all

    def counted(stop):
        seen = original(stop)

        def after_batch():
            batches.append(1)
            if len(batches) == 3:
                stop.received = 15
            return seen()

        return after_batch

    monkeypatch.setattr(task_score, "_seen_by_all", counted)
    assert score(model[1], stop) is None
    assert len(batches) == 3
    # The next call scores as if nothing had happened.
    again = score(model[1], None)
    assert again.metrics == {name: lines(run, "task")[8][name] for name in again.metrics}

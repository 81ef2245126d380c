"""Runs of two processes: the losses of one, resumed by other numbers of processes and devices."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import several_processes

CONFIG = "tests/helpers/tiny_config.py"
STEPS = 12

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs of all processes of these tests."""
    return {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}


def command(workdir, *overrides, steps=STEPS):
    return [
        *("train.py", f"--config={CONFIG}", f"--workdir={workdir}", *overrides),
        *(f"--config.train.steps={steps}", "--config.data.batch_size=8"),
        *("--config.evaluation.documents=8", "--config.evaluation.every_steps=6"),
        "--config.optimizer.schedule=constant",  # the others depend on the number of steps
    ]


def train(cache, workdir, *overrides, steps=STEPS, **options):
    """Runs to a step in processes that must all end well and say nothing on standard error."""
    ends = several_processes.run(command(workdir, *overrides, steps=steps), **options, **cache)
    assert [one.status for one in ends] == [0] * len(ends), ends
    assert [one.errors for one in ends] == [""] * len(ends)
    return ends


def lines(workdir: Path, split: str) -> list[dict[str, float]]:
    text = (workdir / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line.pop("split") == split]


def losses(workdir: Path) -> list[float]:
    """Of all steps, which must be there once and in their order."""
    assert [line["step"] for line in lines(workdir, "train")] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines(workdir, "train")]


@pytest.fixture(scope="module")
def one(cache, tmp_path_factory):
    """The workdir of a run of one process with one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(cache, workdir, count=1)
    return workdir


@pytest.mark.parametrize(
    ("devices", "mesh"),
    [
        (1, {"data": 1, "tensor": 2}),  # both processes have all rows
        (4, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_losses_are_those_of_one_process(cache, one, tmp_path, devices, mesh):
    sizes = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    workdir = tmp_path / "run"
    ends = train(cache, workdir, *sizes, devices=devices)
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)
    for ours, theirs in zip(lines(workdir, "validation"), lines(one, "validation"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    # The first process alone writes the log and the files.
    assert f"step {STEPS}/{STEPS}" in ends[0].output
    assert "step" not in ends[1].output
    assert sorted(path.name for path in workdir.iterdir()) == sorted(
        path.name if "tfevents" not in path.name else next(workdir.glob("*tfevents*")).name
        for path in one.iterdir()
    )


@pytest.mark.parametrize(
    "legs",
    [
        [{"count": 2}, {"count": 1}, {"count": 2}],
        [{"count": 1}, {"count": 1, "devices": 8}, {"count": 1}],
    ],
    ids=["2 to 1 to 2 processes", "1 to 8 to 1 devices"],
)
def test_another_number_resumes_the_same_run(cache, one, tmp_path, legs):
    workdir = tmp_path / "run"
    for steps, options in zip((4, 8, STEPS), legs, strict=True):
        ends = train(cache, workdir, steps=steps, **options)
        assert steps == 4 or f"resumed after step {steps - 4}" in ends[0].output
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)


def written_steps(workdir: Path) -> int:
    metrics = workdir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@pytest.mark.parametrize(("stopped", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_process_stops_both_at_one_step(cache, one, tmp_path, stopped, number):
    workdir = tmp_path / "run"
    with several_processes.started(command(workdir, steps=10_000), **cache) as processes:
        several_processes.wait_until(lambda: written_steps(workdir) >= 2, processes)
        processes[stopped].send_signal(number)
        ends = several_processes.ended(processes)
    assert [one.status for one in ends] == [128 + number] * 2, ends
    [step] = {line for one in ends for line in one.errors.splitlines() if "stopped after" in line}
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"stopped after step {saved}, saved in {workdir}" in step
    assert saved == lines(workdir, "train")[-1]["step"]
    if saved < STEPS:
        train(cache, workdir)
        np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)


def test_a_loss_that_is_not_finite_ends_both(cache, tmp_path):
    ends = several_processes.run(
        command(tmp_path / "run", "--config.optimizer.learning_rate=1e30"), **cache
    )
    assert [one.status for one in ends] == [1, 1], ends
    for one in ends:
        assert "Stopped without saving" in one.errors
        assert "Traceback" not in one.errors


@pytest.mark.parametrize("mistaken", [0, 1])
def test_an_error_of_one_process_ends_both(cache, tmp_path, mistaken):
    extra = [(), ()]
    extra[mistaken] = ("--config.model.init=/nowhere",)
    ends = several_processes.run(command(tmp_path / "run"), extra=extra, **cache)
    assert [one.status for one in ends] == [2, 2], ends
    own, other = ends[mistaken].errors, ends[1 - mistaken].errors
    assert own.startswith("error: ")
    assert "/nowhere" in own
    assert other == f"error: process {mistaken} of 2 stopped: {own.removeprefix('error: ')}"


@pytest.mark.parametrize("killed", [0, 1])
def test_the_end_of_a_process_ends_the_other(cache, one, tmp_path, killed):
    workdir = tmp_path / "run"
    with several_processes.started(command(workdir, steps=10_000), **cache) as processes:
        several_processes.wait_until(lambda: written_steps(workdir) >= 7, processes)
        processes[killed].kill()
        ends = several_processes.ended(processes, seconds=120)
    assert ends[killed].status == -signal.SIGKILL
    assert ends[1 - killed].status not in (0, None)
    if killed == 1:  # otherwise JAX ends the process as soon as it misses process 0
        assert ends[0].errors.startswith("error: another process has died")
        assert "Traceback" not in ends[0].errors
    train(cache, workdir, steps=max(STEPS, written_steps(workdir) + 1))
    shown = [line["loss"] for line in lines(workdir, "train")][:STEPS]
    np.testing.assert_allclose(shown, losses(one), rtol=1e-5)


SCORED = (
    "--config.evaluation.task_score_every_steps=4",
    "--config.checkpoint.best_metric=task/slot_accuracy",
    "--config.checkpoint.patience=9",
)


@pytest.fixture(scope="module")
def one_scored(cache, tmp_path_factory):
    """The workdir of a run of one process that scores the task."""
    workdir = tmp_path_factory.mktemp("one_scored") / "run"
    train(cache, workdir, *SCORED, count=1, steps=8)
    return workdir


@pytest.mark.parametrize(
    ("devices", "mesh"),
    [
        (1, {}),  # each process answers its own batches
        (2, {"data": 1, "fsdp": 2, "tensor": 2}),  # all processes answer each batch
    ],
    ids=str,
)
def test_task_scores_are_those_of_one_process(cache, one_scored, tmp_path, devices, mesh):
    sizes = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    ends = train(cache, tmp_path / "two", *SCORED, *sizes, devices=devices, steps=8)
    expected = lines(one_scored, "task")
    assert [line["step"] for line in expected] == [4, 8]
    for ours, theirs in zip(lines(tmp_path / "two", "task"), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)  # of 88 answers, one may differ
    assert "step 8  task: " in ends[0].output


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_signal_to_one_process_stops_the_generation_of_both(cache, tmp_path, stopped):
    workdir = tmp_path / "run"
    slow = "--config.evaluation.documents=0", "--config.evaluation.batch_size=2"
    scored = command(workdir, *SCORED, steps=10_000)
    scored = [*scored, *slow, "--config.evaluation.task_score_every_steps=2"]
    with several_processes.started(scored, **cache) as processes:
        several_processes.wait_until(lambda: written_steps(workdir) >= 2, processes)
        processes[stopped].send_signal(signal.SIGTERM)
        ends = several_processes.ended(processes)
    assert [one.status for one in ends] == [128 + signal.SIGTERM] * 2, ends
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    for one in ends:
        assert "Traceback" not in one.errors
    assert saved == lines(workdir, "train")[-1]["step"]


def test_packed_batches_of_two_processes_give_the_losses_of_one(cache, tmp_path):
    options = "--config.data.packing=True", "--config.evaluation.every_steps=2"
    for name, count in (("one", 1), ("two", 2)):
        train(cache, tmp_path / name, *options, steps=2, count=count)
    one, two = (lines(tmp_path / name, "train") for name in ("one", "two"))
    assert len(one) == 2
    np.testing.assert_allclose([x["loss"] for x in two], [x["loss"] for x in one], rtol=1e-5)
    one, two = (lines(tmp_path / name, "validation") for name in ("one", "two"))
    assert len(one) == 1
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)

"""train.py as a user meets it: killed, stopped, resumed, on several devices, mistaken."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pid_jax.commands import train
from tests.helpers.quick_compilation import xla_flags

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "tests/helpers/tiny_config.py"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One cache of compiled programs for all processes of these tests."""
    cache = tmp_path_factory.mktemp("compiled")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}


def command(workdir, *overrides):
    return [
        *(sys.executable, str(ROOT / "train.py")),
        *(f"--config={CONFIG}", f"--workdir={workdir}"),
        *overrides,
    ]


def run(environment, workdir, *overrides, **changes):
    return subprocess.run(
        command(workdir, *overrides),
        cwd=ROOT,
        env={**environment, **changes},
        capture_output=True,
        text=True,
        timeout=300,
    )


def stop_after(environment, workdir, steps, number):
    """Starts the run and sends it a signal once `steps` lines of metrics are written."""
    metrics = workdir / "metrics.jsonl"
    with subprocess.Popen(
        command(workdir),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 280
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= steps:
                process.send_signal(number)
                break
            time.sleep(0.002)
        output, errors = process.communicate(timeout=280)
    return process.returncode, output, errors


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    """The metrics of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finished = run(environment, workdir)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "step 24/24  loss" in finished.stdout
    return (workdir / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(environment, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    # Before the first checkpoint, and about when one is written.
    for steps in (2, 11):
        status, _, _ = stop_after(environment, workdir, steps, signal.SIGKILL)
        assert status == -signal.SIGKILL
    finished = run(environment, workdir)
    assert finished.returncode == 0, finished.stderr
    assert "resumed after step" in finished.stdout
    assert (workdir / "metrics.jsonl").read_text() == uninterrupted


@pytest.mark.slow
def test_a_stopped_run_saves_and_goes_on_bit_for_bit(environment, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    for number, steps in ((signal.SIGTERM, 3), (signal.SIGINT, 12)):
        status, _, errors = stop_after(environment, workdir, steps, number)
        assert status == 128 + number
        assert "run the same command again to continue" in errors
        assert "Traceback" not in errors
        done = max(line["step"] for line in lines(workdir))
        assert (workdir / "checkpoints" / str(done)).is_dir()

    finished = run(environment, workdir)
    assert finished.returncode == 0, finished.stderr
    assert f"resumed after step {done}" in finished.stdout
    assert (workdir / "metrics.jsonl").read_text() == uninterrupted


@pytest.mark.slow
def test_four_devices_compute_what_one_does(environment, uninterrupted, tmp_path):
    """Batches are split over both axes, parameters over the second."""
    finished = run(
        environment,
        tmp_path,
        "--config.train.steps=24",
        "--config.mesh.data=2",
        "--config.mesh.fsdp=2",
        XLA_FLAGS=xla_flags("--xla_force_host_platform_device_count=4"),
    )
    assert finished.returncode == 0, finished.stderr
    assert "4 cpu devices" in finished.stdout
    ours = [line["loss"] for line in lines(tmp_path)]
    one = [json.loads(line)["loss"] for line in uninterrupted.splitlines()]
    # Sums are taken in another order; 24 steps let the last digits drift apart.
    np.testing.assert_allclose(ours[:3], one[:3], rtol=1e-5)
    np.testing.assert_allclose(ours, one, rtol=2e-3)


def test_a_full_disk_is_one_sentence_with_what_is_intact(environment, tmp_path):
    """No file may grow beyond what the metrics and the model's description take."""
    limited = ["bash", "-c", 'ulimit -f 58 && exec "$@"', "bash"]  # in units of 1,024 bytes
    ended = subprocess.run(
        [*limited, *command(tmp_path / "run", "--config.train.steps=6")],
        cwd=ROOT,
        env={**environment, "JAX_ENABLE_COMPILATION_CACHE": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: cannot write {tmp_path / 'run'}: File too large; nothing was saved yet. "
        "Correct the problem and run the same command again\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.stepz=3"], "unknown key config.train.stepz"),
        (["--config.data.task=nothing"], "unknown task 'nothing'"),
        (["--config.mesh.data=3"], "does not fit 1 device"),
        (["--config.model.init=/nowhere"], "/nowhere"),
        (["--config.data.path=/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--config.model.architecture.model_type=gpt2"], "gpt2"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, capfd, monkeypatch, arguments, message):
    for name in ("pid_jax", "absl"):  # the command sets up both
        log = logging.getLogger(name)
        monkeypatch.setattr(log, "handlers", [])
        monkeypatch.setattr(log, "propagate", log.propagate)
        monkeypatch.setattr(log, "level", log.level)
    with pytest.raises(SystemExit) as stopped:
        train.main(command(tmp_path / "run", *arguments)[2:])
    assert stopped.value.code == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_help_shows_the_command_before_anything_slow_is_imported():
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0
    assert "--config=FILE --workdir=DIRECTORY" in ended.stdout
    assert "goes on from the last checkpoint" in ended.stdout
    assert "| jax" not in ended.stderr

import json
import subprocess
import sys

import jax
import numpy
import pytest

import pid_jax
from pid_jax import sharding
from pid_jax.training import config as configuration
from pid_jax.training import environment


def entries(workdir):
    return json.loads((workdir / environment.FILE).read_text())


def test_each_start_adds_what_it_ran_with(tmp_path, monkeypatch):
    config, mesh = configuration.default(), sharding.make_mesh()
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=mine.py"])
    monkeypatch.setenv("XLA_MINE", "1")
    environment.record(tmp_path, config, mesh, 0)
    config.seed = 3
    environment.record(tmp_path, config, mesh, 40)
    first, second = entries(tmp_path)
    assert (first["after_step"], second["after_step"]) == (0, 40)
    assert (first["config"]["seed"], second["config"]["seed"]) == (0, 3)
    assert first["command"] == ["train.py", "--config=mine.py"]
    assert first["libraries"]["jax"] == jax.__version__
    assert first["libraries"]["numpy"] == numpy.__version__
    assert first["devices"] == {
        "kind": "cpu",
        "count": mesh.size,
        "processes": 1,
        "mesh": dict(mesh.shape),
    }
    assert first["variables"]["XLA_MINE"] == "1"


@pytest.mark.parametrize("content", ["", "{}", "[1"])
def test_a_damaged_file_does_not_stop_a_run(tmp_path, content):
    (tmp_path / environment.FILE).write_text(content)
    environment.record(tmp_path, configuration.default(), sharding.make_mesh(), 0)
    assert len(entries(tmp_path)) == 1


def git(root, *command):
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
    ended = subprocess.run(
        ["git", *identity, *command], cwd=root, check=True, capture_output=True, text=True
    )
    return ended.stdout.strip()


def test_a_checkout_has_its_commit_and_says_whether_files_differ(tmp_path, monkeypatch):
    package = tmp_path / "pid_jax" / "__init__.py"
    package.parent.mkdir()
    package.write_text("one")
    monkeypatch.setattr(pid_jax, "__file__", str(package))
    version = {"version": pid_jax.__version__}
    assert environment.code() == version  # no checkout
    git(tmp_path, "init")
    assert environment.code() == version  # no commit
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert environment.code() == {**version, "commit": commit, "dirty": False}
    package.write_text("two")
    assert environment.code() == {**version, "commit": commit, "dirty": True}


def test_without_git_the_version_stands_alone(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    (tmp_path / "pid_jax").mkdir()
    monkeypatch.setattr(pid_jax, "__file__", str(tmp_path / "pid_jax" / "__init__.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.code() == {"version": pid_jax.__version__}

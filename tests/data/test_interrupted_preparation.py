"""Prepared data sets that are damaged, or whose preparation was interrupted."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pid_jax import tasks
from pid_jax.atomic_file import new_directory
from pid_jax.data import prepare, prepared
from pid_jax.data.prepared import PreparedExamples
from pid_jax.errors import UserError
from tests.helpers.prepared_data import (
    ROOT,
    command,
    examples_in,
    from_source,
    what_is_in,
    write_lines,
)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "flipped"])
def test_a_damaged_record_file_is_named(source, data_dir, damage):
    data = prepare.prepare("jsonl", source, data_dir)
    [file] = data.directory.glob("*-train.array_record-*")
    content = file.read_bytes()
    match damage:
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "emptied":
            file.write_bytes(b"")
        case "removed":
            file.unlink()
        case "flipped":
            file.write_bytes(bytes(byte ^ 0xFF for byte in content))
    with pytest.raises(UserError, match=rf"{data.directory}.*: damaged .*prepare it again"):
        list(examples_in(data_dir, "train"))
    assert len(list(examples_in(data_dir, "test"))) == 2
    with pytest.raises(UserError, match=rf"{file}: damaged"):
        prepare.prepare("jsonl", source, data_dir)


def test_of_two_builds_at_once_the_second_is_told(source, data_dir):
    with new_directory(data_dir / "jsonl" / "1.0.0") as building:
        (building / "half").write_text("")
        with pytest.raises(UserError, match="another process is writing there"):
            prepare.prepare("jsonl", source, data_dir)
        assert prepared.find(data_dir, "jsonl", {}) is None


def test_a_full_disk_is_an_error_that_leaves_nothing(source, data_dir):
    write_lines(source, train=20_000)
    program = (
        "import resource, signal, sys; from pid_jax.data import prepare;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5));"
        "prepare.main(sys.argv[1:])"
    )
    options = ("--task=jsonl", f"--source={source}", f"--data_dir={data_dir}")
    result = subprocess.run(
        [sys.executable, "-c", program, *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert "error: the data set cannot be written" in result.stderr
    assert what_is_in(data_dir / "jsonl") == []


# As the command, but for a source that never ends once it has been read for a while.
ENDLESS = """
import sys, time
from pid_jax.data import prepare
from pid_jax.tasks.jsonl import JsonLines

read = JsonLines.examples

def examples(self, path, split):
    yield from read(self, path, split)
    if split == "test":
        print("reading", flush=True)
        time.sleep(600)

JsonLines.examples = examples
prepare.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_build_leaves_no_version_and_the_next_starts_over(source, data_dir):
    options = ("--task=jsonl", f"--source={source}", f"--data_dir={data_dir}")
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "reading\n"
    second = subprocess.run(
        command(*options), capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert second.returncode == 2
    assert "another process is writing there" in second.stderr
    process.send_signal(signal.SIGKILL)
    process.wait()
    [left_behind] = what_is_in(data_dir / "jsonl")
    assert left_behind.startswith(".building-")
    assert prepared.find(data_dir, "jsonl", {}) is None

    third = subprocess.run(command(*options), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert third.returncode == 0, third.stderr
    assert "train: 9 examples" in third.stderr
    assert what_is_in(data_dir / "jsonl") == ["1.0.0"]
    for split in tasks.SPLITS:
        assert list(examples_in(data_dir, split)) == from_source(source, split)


@pytest.mark.slow
def test_killed_at_any_moment_a_build_leaves_all_or_nothing(source, data_dir):
    options = ("--task=jsonl", f"--source={source}", f"--data_dir={data_dir}")
    started = time.monotonic()
    subprocess.run(command(*options[:2], f"--data_dir={data_dir}0"), check=True, cwd=ROOT)
    whole = time.monotonic() - started
    for share in np.linspace(0.5, 1.0, 6):
        process = subprocess.Popen(command(*options), stderr=subprocess.DEVNULL, cwd=ROOT)
        time.sleep(share * whole)
        process.kill()
        process.wait()
        data = prepared.find(data_dir, "jsonl", {"negative_target": None})
        if data is not None:
            data.check_content()
            assert list(PreparedExamples(data, "train")) == from_source(source, "train")

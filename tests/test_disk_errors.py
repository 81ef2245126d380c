"""A disk that cannot be written to is recognised through the errors of other libraries."""

import errno
import itertools
import os
from pathlib import Path

import pytest

from pid_jax.atomic_file import filling, new_directory, replacing
from pid_jax.disk_errors import in_one_sentence, why_not_written
from pid_jax.errors import UserError

PLACE = Path("/data/run")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def chained(*errors):
    """Each raised from the next."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "No space left on device"),
        (OSError(errno.EROFS, "...", "/data/run/a/b"), "Read-only file system"),
        (PermissionError(errno.EACCES, "...", "/data/run/a"), "Permission denied"),
        # As they were seen: safetensors, tokenizers, TensorStore.
        (
            Exception("Error: I/O error: No space left on device (os error 28)"),
            "No space left on d",
        ),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write: File too large [27]"), "File too large"),
        (ValueError('Opening "/data/run/5/d": Permission denied'), "Permission denied"),
        (chained(RuntimeError("save failed"), KeyError("x"), FULL), "No space left on device"),
        (ExceptionGroup("all", [ValueError("x"), chained(ValueError("y"), FULL)]), "No space left"),
    ],
)
def test_a_disk_is_recognised(error, reason):
    assert why_not_written(PLACE, error).startswith(reason)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "...", "/elsewhere/train.jsonl"),
        FileNotFoundError(errno.ENOENT, "...", "/data/run/a"),
        ValueError("Permission denied by the server"),
        KeyError("x"),
    ],
)
def test_what_is_not_the_disks_fault_is_left_alone(error):
    assert why_not_written(PLACE, error) is None
    with pytest.raises(type(error)), in_one_sentence(PLACE):
        raise error


def test_the_sentence_says_what_stands():
    with (
        pytest.raises(UserError, match=r"^cannot write /data/run: No space left on device; 5 is$"),
        in_one_sentence(PLACE, lambda: "5 is"),
    ):
        raise RuntimeError("save failed") from FULL
    with pytest.raises(UserError, match=r"^mine$"), in_one_sentence(PLACE):
        raise UserError("mine")


@pytest.mark.parametrize("way", [replacing, filling, new_directory])
def test_every_way_of_writing_says_it_and_changes_nothing(way, tmp_path):
    target = tmp_path / "target"
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; "), way(target):
        raise Exception("No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_what_stands_is_said_of_a_file_that_was_there_or_not(tmp_path):
    target = tmp_path / "target"
    for stands in ("was not created", "is unchanged"):
        with pytest.raises(UserError, match=f"; target {stands}$"), replacing(target):
            raise FULL
        target.write_text("mine")

"""Files are complete or not there."""

from pathlib import Path

import pytest

from pid_jax.atomic_file import replacing
from pid_jax.errors import UserError


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with replacing(target) as path:
        path.write_text("content")
        assert not target.exists()
    assert target.read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as path:
            path.write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a directory"), replacing(tmp_path):
        pass


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "file" / "inside"):
        pass

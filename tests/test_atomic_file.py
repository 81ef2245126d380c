"""Files are complete or not there."""

import os
import resource
from pathlib import Path

import pytest

from pid_jax.atomic_file import (
    ResumableFile,
    filling,
    new_directory,
    partial_path,
    replacing,
)
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


# ResumableFile

SETTINGS = {"beams": 4, "answer": None}


def written(path: Path, *lines: bytes) -> None:
    """Leaves lines behind as a writer does that was killed."""
    with ResumableFile(path) as file:
        file.restart(SETTINGS)
        for line in lines:
            file.append(line)


def complete_lines(file: ResumableFile) -> list[bytes]:
    return list(iter(file.next_line, None))


def test_lines_appear_at_the_end_and_leave_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with ResumableFile(target) as file:
        assert file.settings is None
        file.restart(SETTINGS)
        file.append(b"one\n")
        file.append(b"two\nthree\n")
        assert file.lines == 3
        assert not target.exists()
        file.finish()
    assert target.read_bytes() == b"one\ntwo\nthree\n"
    assert list(target.parent.iterdir()) == [target]


def test_a_second_writer_goes_on_where_the_first_was_stopped(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    written(target, b"one\n", b"two\n")
    assert target.read_text() == "old"
    with ResumableFile(target) as file:
        assert file.settings == SETTINGS
        assert complete_lines(file) == [b"one\n", b"two\n"]
        file.append(b"three\n")
        file.finish()
    assert target.read_bytes() == b"one\ntwo\nthree\n"
    assert list(tmp_path.iterdir()) == [target]


def test_complete_lines_that_are_not_read_are_dropped(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    written(target, b"one\n", b"two\n")
    with ResumableFile(target) as file:
        assert file.next_line() == b"one\n"
        file.append(b"other\n")
        assert file.next_line() is None
        file.finish()
    assert target.read_bytes() == b"one\nother\n"


@pytest.mark.parametrize("rest", [b"", b"tw", b"\0\0\0", b"t\0o\nthree\n", b"\0\n"])
def test_what_a_crash_left_of_a_line_is_dropped(tmp_path: Path, rest: bytes) -> None:
    target = tmp_path / "file.txt"
    written(target, b"one\n")
    with partial_path(target).open("ab") as partial:
        partial.write(rest)
    with ResumableFile(target) as file:
        assert complete_lines(file) == [b"one\n"]
        file.finish()
    assert target.read_bytes() == b"one\n"


def test_without_a_whole_line_there_is_nothing_to_resume(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    partial_path(target).write_bytes(b"on")
    (tmp_path / "file.txt.partial.json").write_bytes(b'{"beams"')  # killed in writing it
    with ResumableFile(target) as file:
        assert file.settings is None
        assert file.next_line() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [None, b'{"beams"', b"[]"])
def test_lines_of_unknown_origin_have_no_settings(tmp_path: Path, settings: bytes | None) -> None:
    target = tmp_path / "file.txt"
    partial_path(target).write_bytes(b"one\n")
    if settings is not None:
        (tmp_path / "file.txt.partial.json").write_bytes(settings)
    with ResumableFile(target) as file:
        assert file.settings == {}
    assert partial_path(target).read_bytes() == b"one\n"


def test_settings_left_by_a_writer_killed_at_its_last_step_do_no_harm(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    written(target, b"one\n")
    partial_path(target).replace(target)
    with ResumableFile(target) as file:
        assert file.settings is None
        file.restart({})
        file.append(b"two\n")
        file.finish()
    assert target.read_bytes() == b"two\n"
    assert list(tmp_path.iterdir()) == [target]


def test_a_restart_drops_the_lines_and_their_settings(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    written(target, b"one\n")
    with ResumableFile(target) as file:
        assert file.settings == SETTINGS
        file.restart({"beams": 1})
        assert file.next_line() is None
        file.append(b"two\n")
    with ResumableFile(target) as file:
        assert file.settings == {"beams": 1}
        assert complete_lines(file) == [b"two\n"]


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    with ResumableFile(target) as file:
        file.restart(SETTINGS)
        file.append(b"one\n")
        with pytest.raises(UserError, match=r"file.txt.partial: another process is writing it"):
            ResumableFile(target)
        file.append(b"two\n")
        file.finish()
    assert target.read_bytes() == b"one\ntwo\n"


def test_a_full_disk_is_named_and_costs_no_line_that_was_written(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ResumableFile(target) as file:
        file.restart(SETTINGS)
        file.append(b"one\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, hard))
        try:
            with pytest.raises(UserError, match=r"cannot write .*file.txt.partial: File too large"):
                file.append(b"two\nthree\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert partial_path(target).read_bytes() == b"one\ntw"
    with ResumableFile(target) as file:
        assert complete_lines(file) == [b"one\n"]
        file.append(b"two\n")
        file.finish()
    assert target.read_bytes() == b"one\ntwo\n"


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "folder": "it is a directory",
        "pipe": "it is not a regular file",
        "file/inside": "cannot write",
    }.items():
        with pytest.raises(UserError, match=message):
            ResumableFile(tmp_path / name)


def test_a_directory_appears_when_the_block_ends_with_all_that_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "1.0.0"
    with new_directory(target) as directory:
        (directory / "inner").mkdir()
        (directory / "inner" / "file.txt").write_text("content")
        assert not target.exists()
    assert (target / "inner" / "file.txt").read_text() == "content"
    assert list(target.parent.iterdir()) == [target]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert target.stat().st_mode == plain.stat().st_mode


def test_an_error_leaves_no_directory(tmp_path: Path) -> None:
    def half_done() -> None:
        with new_directory(tmp_path / "1") as directory:
            (directory / "file.txt").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half_done()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_never_replaced_and_what_was_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / ".building-abc").mkdir()
    (tmp_path / ".building-abc" / "file.txt").write_text("of a process that was killed")
    with pytest.raises(UserError, match="it exists"), new_directory(tmp_path / "1"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "1"]


def test_two_directories_are_not_made_beside_each_other_at_once(tmp_path: Path) -> None:
    with new_directory(tmp_path / "1"):
        with pytest.raises(UserError, match="another process"), new_directory(tmp_path / "2"):
            pass
        assert not (tmp_path / "2").exists()
    with new_directory(tmp_path / "2"):
        pass
    assert (tmp_path / "1").is_dir()


def test_a_directory_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), new_directory(tmp_path / "file" / "1"):
        pass


# filling

WEIGHTS = ("part-*", "index", "whole")


def fill(directory: Path, *files: str) -> None:
    with filling(directory, WEIGHTS) as folder:
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("new")


def content(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_text() for path in files}


def test_filling_replaces_files_and_folders_and_removes_what_they_stand_for(tmp_path: Path) -> None:
    for name in ("settings", "whole", "notes", "templates/a", "templates/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    fill(tmp_path, "settings", "part-1", "index", "templates/a")
    new = dict.fromkeys(("settings", "part-1", "index", "templates/a"), "new")
    assert content(tmp_path) == new | {"notes": "old"}
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
    ("there", "new", "message"),
    [("settings/x", "settings", "it is a dir"), ("settings", "settings/x", "it is no dir")],
)
def test_what_cannot_take_its_place_is_seen_before_anything_is_moved(
    tmp_path: Path, there: str, new: str, message: str
) -> None:
    for name in (there, "whole"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    with pytest.raises(UserError, match=f"settings: {message}.*nothing there was changed"):
        fill(tmp_path, "a", "index", new)
    assert content(tmp_path) == {there: "old", "whole": "old"}


@pytest.mark.parametrize(
    ("stuck", "said"),
    [("a", "nothing there was changed"), ("index", "old files remain beside the new ones")],
)
def test_no_old_weights_go_before_all_new_files_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: str, said: str
) -> None:
    (tmp_path / "whole").write_text("old")
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if path.name == stuck:
            raise PermissionError(1, "Operation not permitted", str(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(UserError, match=f"Operation not permitted; {said}"):
        fill(tmp_path, "index", "part-1", "a")
    assert (tmp_path / "whole").read_text() == "old"
    assert (tmp_path / "part-1").exists() == (stuck == "index")

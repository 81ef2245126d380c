"""Atomic writes: files and directories that are either complete or absent."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from io import FileIO
from pathlib import Path
from typing import Any, Self

from pid_jax import directory_lock
from pid_jax.disk_errors import in_one_sentence
from pid_jax.errors import UserError

if sys.platform != "win32":
    import fcntl


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path, which replaces `path` if the block ends without an error.

    Otherwise `path` is unchanged. Creates missing parent directories. Raises UserError if writing
    fails.
    """
    path = Path(path)
    _make_parent(path)
    state = "is unchanged" if path.exists() else "was not created"
    with in_one_sentence(path.parent, lambda: f"{path.name} {state}"):
        # In the same directory, because a rename is atomic only within one file system.
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
        try:
            yield folder / path.name
            (folder / path.name).replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_writable(directory: str | Path) -> None:
    """Raises UserError if a directory is not writable or cannot be created.

    Commands call it first, so that an unwritable output does not waste their work.
    """
    directory = Path(directory)
    try:
        present = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(prefix=".writing-", dir=present) as file:
            file.write(b"\n")
            file.flush()
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror or error}") from error


@contextmanager
def filling(directory: str | Path, instead_of: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary directory, whose files move to `directory` if the block ends without an error.

    Otherwise `directory` is unchanged or absent. New files replace files and folders of the same
    names. Afterwards, other files that match the patterns `instead_of` are deleted. All others are
    unchanged. The files move one by one, those that match `instead_of` last and in its order.
    Nothing is written during the moves, so a reader sees a mixture only for a moment. A lock
    excludes other writers, if the file system has locks. Raises UserError if writing fails.
    """
    directory = Path(directory)
    is_new = not directory.exists()
    moved: list[str] = []

    def intact() -> str:
        if not moved:
            return _UNCHANGED
        return f"old files remain beside the new ones ({', '.join(moved)}): write it again"

    with ExitStack() as stack:
        stack.enter_context(in_one_sentence(directory, intact))
        directory.mkdir(parents=True, exist_ok=True)
        if is_new:
            stack.callback(_remove_if_empty, directory)
        if stack.enter_context(directory_lock.writing(directory)):
            for left_behind in directory.glob(f"{_FILLING}*"):
                shutil.rmtree(left_behind)
        temporary = Path(tempfile.mkdtemp(prefix=_FILLING, dir=directory))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        # A subdirectory, because other users cannot read the directories of mkdtemp.
        folder = temporary / "files"
        folder.mkdir()
        yield folder
        _sync(folder)
        new = sorted((path.name for path in folder.iterdir()), key=_order_by(instead_of))
        for name in new:
            _check_replaceable(directory / name, folder / name)
        for name in new:
            if _is_folder(directory / name):  # a rename cannot replace a non-empty folder
                (directory / name).rename(temporary / name)
            (folder / name).replace(directory / name)
            moved.append(name)
        _sync_directory(directory)
        for pattern in instead_of:
            for old in directory.glob(pattern):
                if old.relative_to(directory).parts[0] not in new and not _is_folder(old):
                    old.unlink()
        _sync_directory(directory)


_FILLING = ".filling-"
_UNCHANGED = "nothing there was changed"


def _order_by(patterns: Sequence[str]) -> Callable[[str], int]:
    """A sort key: the number of the last pattern that a name matches, or 0 for none."""
    return lambda name: max(
        (i for i, pattern in enumerate(patterns, start=1) if fnmatchcase(name, pattern)), default=0
    )


def _check_replaceable(old: Path, new: Path) -> None:
    if os.path.lexists(old) and _is_folder(old) != _is_folder(new):
        kind = "a" if _is_folder(old) else "no"
        raise UserError(f"cannot write {old}: it is {kind} directory; {_UNCHANGED}")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


@contextmanager
def new_directory(path: str | Path, *, locked: bool | None = None) -> Iterator[Path]:
    """A temporary directory, which is renamed to `path` if the block ends without an error.

    The rename follows a sync of its content to disk. A lock on the parent directory excludes other
    writers, if the file system has locks, and remains of killed writers are deleted. locked:
    whether the caller has that lock. Raises UserError if writing fails or `path` exists.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if locked is None:
                locked = stack.enter_context(directory_lock.writing(path.parent))
            if locked:
                for left_behind in path.parent.glob(f"{_BUILDING}*"):
                    shutil.rmtree(left_behind)
            if path.exists():
                raise UserError(f"cannot write {path}: it exists")
            temporary = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=path.parent))
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            # A subdirectory, because other users cannot read the directories of mkdtemp.
            directory = temporary / path.name
            directory.mkdir()
        except OSError as error:
            raise _cannot_write(path, error) from error
        with in_one_sentence(path.parent, lambda: f"{path.name} was not created"):
            yield directory
            _sync(directory)
            directory.rename(path)
            _sync_directory(path.parent)


_BUILDING = ".building-"


class ResumableFile:
    """A file of lines that appears as `path` when complete, and that a later process can resume.

    Until `finish`, the lines are in `<path>.partial` and the caller's settings in
    `<path>.partial.json`. Use it as a context manager: a lock excludes other writers, if the file
    system has locks, and files without lines are deleted at the end.

    Call the members in this order: read `settings`, call `restart` if they differ from yours, call
    `next_line` for each line to reuse, `append`, which continues after the last line read, and
    `finish`. Raises UserError if writing fails.
    """

    def __init__(self, path: str | Path) -> None:
        self._target = Path(path)
        self.partial, self._about = partial_path(path), Path(f"{path}.partial.json")
        self.lines = 0
        """Number of lines read by `next_line` or appended."""
        self._length = 0  # of those lines, in bytes
        self._writing = False  # if True, the reader's buffer may be outdated
        _make_parent(self._target)
        if self._target.exists() and not self._target.is_file():
            raise UserError(f"cannot write {self._target}: it is not a regular file")
        try:
            self._writer = self.partial.open("ab", buffering=0)
            _lock(self._writer, self.partial)
            self._reader = self.partial.open("rb")
        except OSError as error:
            raise _cannot_write(self.partial, error) from error

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings that the writer of the lines passed to `restart`.

        None if there are no lines, and empty if their settings are unknown.
        """
        if not self._has_unread_line():
            return None
        try:
            settings = json.loads(self._about.read_bytes())
        except (OSError, ValueError):
            return {}
        return settings if isinstance(settings, dict) else {}

    def restart(self, settings: Mapping[str, Any]) -> None:
        """Deletes all lines. settings: a JSON object that describes the lines to append."""
        try:
            # In this order and with syncs, so that settings never describe lines of others.
            self._writer.truncate(0)
            os.fsync(self._writer.fileno())
            self._writing = True
            with self._about.open("wb") as file:
                file.write(json.dumps(dict(settings), indent=2).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            _sync_directory(self._target.parent)
        except OSError as error:
            raise _cannot_write(self._about, error) from error

    def next_line(self) -> bytes | None:
        """The next line of an earlier writer, with its line feed. None after the last.

        The lines end before an incomplete line and before one with null bytes, which a power
        failure can leave in a growing file.
        """
        line = b"" if self._writing else self._reader.readline()
        if not _is_whole(line):
            self._reader.seek(self._length)
            return None
        self.lines += 1
        self._length += len(line)
        return line

    def append(self, lines: bytes) -> None:
        """Appends complete lines and syncs them to disk. Deletes earlier lines that were not read.

        lines: each with its line feed.
        """
        try:
            self._drop_unread()
            rest = memoryview(lines)
            while rest:
                rest = rest[self._writer.write(rest) :]
            os.fsync(self._writer.fileno())
        except OSError as error:
            raise _cannot_write(self.partial, error) from error
        self.lines += lines.count(b"\n")
        self._length += len(lines)

    def finish(self) -> None:
        """Renames the file to its final path, and syncs file and directory to disk."""
        try:
            self._drop_unread()
            os.fsync(self._writer.fileno())
            if os.name != "posix":  # cannot rename open files
                self.close()
            # Otherwise still locked, so that no other writer opens the file before the rename.
            self.partial.replace(self._target)
            self.close()
            _sync_directory(self._target.parent)
            self._about.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self._target, error) from error

    def close(self) -> None:
        """Closes the file. A later writer can resume it."""
        self._reader.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._writer.closed:
            if not self._length and not self._has_unread_line():
                with suppress(OSError):
                    self.partial.unlink()
                    self._about.unlink()
            self.close()

    def _has_unread_line(self) -> bool:
        line = self._reader.readline()
        self._reader.seek(self._length)
        return _is_whole(line)

    def _drop_unread(self) -> None:
        if not self._writing:
            self._writer.truncate(self._length)
            self._writing = True


def partial_path(path: str | Path) -> Path:
    """The path of `ResumableFile`'s lines until `path` is complete."""
    return Path(f"{path}.partial")


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") and b"\0" not in line


def _make_parent(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _lock(file: FileIO, path: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous owner of the lock may have renamed the file.
        alone = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        alone = False
    except OSError:  # a file system without locks
        return
    if not alone:
        file.close()
        raise UserError(f"{path}: another process is writing it")


def _sync(directory: Path) -> None:
    """Syncs all files in a directory to disk."""
    for folder, _, files in os.walk(directory):
        for name in files:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(folder))


def _sync_directory(directory: Path) -> None:
    # Without it a power failure can undo a rename. Not every system supports it.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}")

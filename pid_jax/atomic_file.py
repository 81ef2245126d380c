"""Files and directories that are either complete or not there."""

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
    """A path to write to, which becomes `path` only if the block ends without an error.

    Otherwise whatever was at `path` stays as it was. Missing parent directories are made.
    Raises UserError where nothing can be written.
    """
    path = Path(path)
    _make_place(path)
    stands = "is as it was" if path.exists() else "was not made"
    with in_one_sentence(path.parent, lambda: f"{path.name} {stands}"):
        # Beside its place: a rename is atomic only within one file system.
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
        try:
            yield folder / path.name
            (folder / path.name).replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_writable(directory: str | Path) -> None:
    """Raises UserError where no file can be written in a directory, or where it cannot be made.

    For a command to call before its work: what only the end of it needs should not fail there.
    """
    directory = Path(directory)
    try:
        there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(prefix=".writing-", dir=there) as file:
            file.write(b"\n")
            file.flush()
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror or error}") from error


@contextmanager
def filling(directory: str | Path, instead_of: Sequence[str] = ()) -> Iterator[Path]:
    """A directory to fill, whose files go to `directory` if the block ends without an error.

    Otherwise `directory` stays as it was, or is not there. Files and folders of the same names are
    replaced, those that match the patterns `instead_of` are removed, all others are left alone.
    Files get their places one after the other, those of `instead_of` last and in its order, but
    nothing is written meanwhile: who reads is disturbed for a moment only. Nothing is removed
    before all that is new is there. Other processes that would fill it are kept out (where the
    file system has locks). Raises UserError where nothing can be written.
    """
    directory = Path(directory)
    made = not directory.exists()
    moved: list[str] = []

    def intact() -> str:
        if not moved:
            return _UNCHANGED
        return f"old files are there beside new ones, which are {', '.join(moved)}: write it again"

    with ExitStack() as stack:
        stack.enter_context(in_one_sentence(directory, intact))
        directory.mkdir(parents=True, exist_ok=True)
        if made:
            stack.callback(_remove_if_empty, directory)
        if stack.enter_context(directory_lock.writing(directory)):
            for left_behind in directory.glob(f"{_FILLING}*"):
                shutil.rmtree(left_behind)
        place = Path(tempfile.mkdtemp(prefix=_FILLING, dir=directory))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        # Inside, for mkdtemp's own directories are closed to others.
        folder = place / "files"
        folder.mkdir()
        yield folder
        _sync(folder)
        new = sorted((path.name for path in folder.iterdir()), key=_place_in(instead_of))
        for name in new:
            _check_replaceable(directory / name, folder / name)
        for name in new:
            if _is_folder(directory / name):  # which no other can replace before it is empty
                (directory / name).rename(place / name)
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


def _place_in(patterns: Sequence[str]) -> Callable[[str], int]:
    """The number of the last pattern that a name matches; 0 where it matches none."""
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
def new_directory(path: str | Path) -> Iterator[Path]:
    """A directory to fill, which becomes `path` only if the block ends without an error.

    By then everything in it is on disk. Other processes that would make a directory beside it
    are kept out meanwhile (where the file system has locks), and what a killed one left there is
    removed. Raises UserError where nothing can be written, or where `path` is there already.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if stack.enter_context(directory_lock.writing(path.parent)):
                for left_behind in path.parent.glob(f"{_BUILDING}*"):
                    shutil.rmtree(left_behind)
            if path.exists():
                raise UserError(f"cannot write {path}: it is there already")
            place = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=path.parent))
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            # Inside, for mkdtemp's own directories are closed to others.
            directory = place / path.name
            directory.mkdir()
        except OSError as error:
            raise _cannot_write(path, error) from error
        with in_one_sentence(path.parent, lambda: f"{path.name} was not made"):
            yield directory
            _sync(directory)
            directory.rename(path)
            _sync_directory(path.parent)


_BUILDING = ".building-"


class ResumableFile:
    """Lines that become the file `path` once all are there; a killed writer can be taken up again.

    Until `finish` the lines are in `<path>.partial`, and in `<path>.partial.json` what the caller
    says they were made with. Use it as a context manager: other processes are kept out within
    (where the file system has locks), and what holds no line is removed at the end.

    A caller first reads `settings`, and calls `restart` unless they suit it; then `next_kept` as
    often as it likes; then `append`, which goes on after the last line that was read; then
    `finish`. Raises UserError where nothing can be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._target = Path(path)
        self.partial, self._about = partial_path(path), Path(f"{path}.partial.json")
        self.lines = 0
        """How many lines were read by `next_kept` or appended."""
        self._length = 0  # of those lines, in bytes
        self._writing = False  # then the reader is done: its buffer may hold what is gone
        _make_place(self._target)
        if self._target.exists() and not self._target.is_file():
            raise UserError(f"cannot write {self._target}: it is no regular file")
        try:
            self._writer = self.partial.open("ab", buffering=0)
            _lock(self._writer, self.partial)
            self._reader = self.partial.open("rb")
        except OSError as error:
            raise _cannot_write(self.partial, error) from error

    @property
    def settings(self) -> dict[str, Any] | None:
        """What was given to `restart` by who wrote the lines; None if there is no line.

        Empty if there are lines of which this is not known.
        """
        if not self._has_unread_line():
            return None
        try:
            settings = json.loads(self._about.read_bytes())
        except (OSError, ValueError):
            return {}
        return settings if isinstance(settings, dict) else {}

    def restart(self, settings: Mapping[str, Any]) -> None:
        """Drops every line there is. `settings` (a JSON object) describes those to come."""
        try:
            # In this order, durably: no line may ever stand beside settings that are not its own.
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

    def next_kept(self) -> bytes | None:
        """The next line that an earlier writer left, with its line feed; None after the last.

        A line that was cut off is none, nor is one with null bytes, which a power failure can
        leave where a file grew: the lines end before it.
        """
        line = b"" if self._writing else self._reader.readline()
        if not _is_whole(line):
            self._reader.seek(self._length)
            return None
        self.lines += 1
        self._length += len(line)
        return line

    def append(self, lines: bytes) -> None:
        """Adds whole lines, on disk when this returns, and drops kept ones that were not read."""
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
        """Puts the lines at their place, for good: the directory is on disk, too."""
        try:
            self._drop_unread()
            os.fsync(self._writer.fileno())
            if os.name != "posix":  # where open files cannot be renamed
                self.close()
            # Else still locked: nobody else may begin to write what is about to be the output.
            self.partial.replace(self._target)
            self.close()
            _sync_directory(self._target.parent)
            self._about.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self._target, error) from error

    def close(self) -> None:
        """Leaves the lines for a later writer."""
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
    """Where `ResumableFile` keeps lines until `path` is complete."""
    return Path(f"{path}.partial")


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") and b"\0" not in line


def _make_place(path: Path) -> None:
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
        # Who held the lock until now may have put the file at its place.
        alone = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        alone = False
    except OSError:  # a file system without locks
        return
    if not alone:
        file.close()
        raise UserError(f"{path}: another process is writing it")


def _sync(directory: Path) -> None:
    """Puts everything in a directory on disk."""
    for folder, _, files in os.walk(directory):
        for name in files:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(folder))


def _sync_directory(directory: Path) -> None:
    # Without this a rename can be undone by a power failure. Not every system can do it.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}")

"""Access to downloaded files in a directory, in a .zip, or to a single file.

Members of a .zip are read in memory, with limits on their size. Nothing is unpacked to disk.
"""

import os
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pid_jax.errors import MissingData, UserError
from pid_jax.tasks.fields import json_of
from pid_jax.tasks.json_stream import JsonStream
from pid_jax.tasks.text_files import UNREADABLE, not_utf8, readable, text_of

# Maximum depth of the search for files below a directory.
MAX_DEPTH = 5
# Limits on the unpacked size of a zip member or a gzip file: absolute, and relative to its packed
# size. Sizes up to SMALL_BYTES are exempt from the relative limit. MultiWOZ's JSON, the most
# repetitive of all benchmarks, expands 20-fold, archives made to exhaust memory 1,000-fold.
MAX_MEMBER_BYTES = 4 * 2**30
MAX_EXPANSION = 200
SMALL_BYTES = 2**20

# The errors of zipfile for archives that it cannot open. An encrypted member is a RuntimeError, an
# unknown compression a subclass of it, invalid names and offsets are ValueErrors.
_UNOPENABLE = (*UNREADABLE, RuntimeError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True)
class _Member:
    file: Path
    name_in_zip: str | None = None

    def __str__(self) -> str:
        return f"{self.file}/{self.name_in_zip}" if self.name_in_zip else str(self.file)


class SourceFiles:
    """The files of a directory, of a .zip, or a single file.

    `names` are sorted paths inside the source, with "/" as separator. A single file has its own
    name. "test.json.zip" in a directory also appears as "test.json", and so does "test.json.gz"
    everywhere, unless "test.json" exists. System files (".DS_Store", "__MACOSX/") are left out.

    Every method raises UserError, naming the source and the file in it, for missing and unreadable
    files: damaged or encrypted archives, members above the size limits, and members whose path
    leads out of the archive.
    """

    def __init__(self, path: str | Path | None) -> None:
        if path is None or str(path) == "":
            raise UserError("a directory, a .zip or a file is needed: the path is not set")
        self.path = Path(path)
        if self.path.is_dir():
            self._members = _members_of_directory(self.path)
        elif not self.path.is_file():
            raise UserError(f"{self.path}: no such file or directory")
        elif _is_zip(self.path):
            self._members = _members_of_zip(self.path)
        else:
            self._members = {self.path.name: _Member(self.path)}
        if not self.is_one_file:
            for name in list(self._members):
                if name.lower().endswith(".gz"):
                    self._members.setdefault(name[: -len(".gz")], self._members[name])
        self.names = tuple(sorted(self._members))

    @property
    def is_one_file(self) -> bool:
        """Whether the path is a single file."""
        return self._members.get(self.path.name) == _Member(self.path)

    def where(self, name: str) -> str:
        """The full path of a file, for messages."""
        return str(self._member(name))

    def named(self, *file_names: str) -> list[str]:
        """The names whose last component is one of `file_names`."""
        return [name for name in self.names if PurePosixPath(name).name in file_names]

    def only(self, *file_names: str) -> str:
        """The name whose last component is one of `file_names`.

        Raises MissingData if there is none, and UserError if there are several.
        """
        matches = self.named(*file_names)
        if len(matches) == 1:
            return matches[0]
        wanted = " or ".join(file_names)
        if matches:
            raise UserError(
                f"{self.path}: {wanted} occurs more than once: {', '.join(matches)}; name the "
                "folder that is meant"
            )
        raise MissingData(f"{self.path}: there is no {wanted}; {self.contents()}")

    def contents(self) -> str:
        """The names of the present files, for messages."""
        if not self.names:
            return "it contains no files"
        shown = ", ".join(self.names[:8])
        return f"it contains {shown}" + (", ..." if len(self.names) > 8 else "")

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """The file's text as a stream of bytes. See `text_files.text_of`."""
        member = self._member(name)
        with ExitStack() as stack:
            with readable(member, _UNOPENABLE):
                if member.name_in_zip is None:
                    file: IO[bytes] = stack.enter_context(member.file.open("rb"))
                    packed = member.file.stat().st_size
                else:
                    archive = stack.enter_context(zipfile.ZipFile(member.file))
                    info = archive.getinfo(member.name_in_zip)
                    _check_size(info, member)
                    file = stack.enter_context(archive.open(info))
                    packed = info.file_size
            yield text_of(file, str(member), most=_most(packed))

    def read_bytes(self, name: str) -> bytes:
        """The file's whole text as bytes."""
        with self.open(name) as file:
            # zipfile stops at the declared size of a member, which `open` has checked. The stream
            # of `open` counts the bytes that gzip unpacks.
            return file.read()

    def read_text(self, name: str) -> str:
        """The whole file. Raises UserError unless it is UTF-8."""
        try:
            return self.read_bytes(name).decode()
        except UnicodeDecodeError as error:
            raise not_utf8(self.where(name), error.start) from error

    def read_lines(self, name: str) -> list[str]:
        """All lines of the file, without line ends."""
        return self.read_text(name).splitlines()

    def read_json(self, name: str) -> Any:
        return json_of(self.read_text(name), self.where(name))

    def read_json_list(self, name: str) -> Iterator[Any]:
        """The elements of a JSON list, one at a time. Memory use is that of the largest."""
        with self.open(name) as file:
            yield from JsonStream(file, self.where(name)).elements()

    def read_json_object(self, name: str) -> Iterator[tuple[str, Any]]:
        """The keys and values of a JSON object, one at a time.

        Memory use is that of the largest value and of all keys. Raises UserError for a repeated
        key.
        """
        with self.open(name) as file:
            yield from JsonStream(file, self.where(name)).items()

    def _member(self, name: str) -> _Member:
        if name not in self._members:
            raise UserError(f"{self.path}: there is no {name}; {self.contents()}")
        return self._members[name]


def _is_zip(path: Path) -> bool:
    with readable(path):
        return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


def _members_of_directory(directory: Path) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    compressed = []
    with readable(directory):
        for folder, folders, files in os.walk(directory):
            here = Path(folder).relative_to(directory)
            folders[:] = [] if len(here.parts) == MAX_DEPTH else _without_system_files(folders)
            for file in _without_system_files(files):
                path = here / file
                if not (directory / path).is_file():
                    continue
                members[path.as_posix()] = _Member(directory / path)
                if path.suffix.lower() == ".zip" and path.with_suffix("").suffix:
                    compressed.append(path)
    for path in compressed:
        inside = [
            member
            for name, member in _members_of_zip(directory / path).items()
            if PurePosixPath(name).name == path.stem
        ]
        if len(inside) == 1:
            members.setdefault(path.with_suffix("").as_posix(), inside[0])
    return members


def _without_system_files(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _members_of_zip(path: Path) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    with readable(path, _UNOPENABLE), zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    for info in infos:
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts:
            raise UserError(
                f"{path}: refused because its member {info.filename!r} leads out of the archive"
            )
        is_system_file = len(_without_system_files(name.parts)) < len(name.parts)
        if info.is_dir() or not name.parts or is_system_file:
            continue
        if str(name) in members:
            raise UserError(f"{path}: the member {info.filename!r} occurs twice")
        members[str(name)] = _Member(path, info.filename)
    return members


def _check_size(info: zipfile.ZipInfo, member: _Member) -> None:
    """Raises UserError above the size limits. zipfile never reads more than the declared size."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{member}: an unusual compression: unpack it and name the directory")
    if info.file_size > _most(info.compress_size):
        raise UserError(
            f"{member}: refused because it unpacks from {info.compress_size:,} to "
            f"{info.file_size:,} bytes: if you trust it, unpack it and name the directory"
        )


def _most(packed: int) -> int:
    """The maximum unpacked size, in bytes, for a packed size."""
    return min(MAX_MEMBER_BYTES, max(SMALL_BYTES, MAX_EXPANSION * packed))

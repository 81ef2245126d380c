"""How every reader opens text: UTF-8, with or without a byte order mark, plain or packed by gzip.

What a file is shows in its first bytes, not in its name.
"""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from pid_jax.errors import UserError

# What reading damaged bytes raises, of a file, of a member of a .zip and of gzip.
UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
# First bytes of what people name by mistake.
_OTHER_KINDS = {
    b"PK\x03\x04": "a .zip",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"7z\xbc\xaf": "a .7z",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
}
_TAR, _TAR_AT = b"ustar", 257
_FIRST_BYTES = max(map(len, _OTHER_KINDS))


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A file and the text in it, as `text_of` has it. Raises UserError if it cannot be opened."""
    with ExitStack() as stack:
        with readable(path):
            file = stack.enter_context(Path(path).open("rb"))
        yield file, text_of(file, path)


def text_of(file: IO[bytes], where: str | Path, *, most: int | None = None) -> BinaryIO:
    """The UTF-8 text in `file`, unpacked if gzip has packed it, without a byte order mark.

    The bytes are read as they are asked for and not decoded here. `where` names the file in
    messages. Raises UserError, now or while it is read, for what cannot be read or unpacked, for
    UTF-16 and UTF-32, for other packed formats, and for gzip's that unpack to over `most` bytes.
    """
    with readable(where):
        first = file.read(_FIRST_BYTES)
        text = io.BufferedReader(_Stream(first, file, where))
        if first.startswith(_GZIP):
            unpacked = gzip.GzipFile(fileobj=text)
            first = unpacked.read(_TAR_AT + len(_TAR))
            text = io.BufferedReader(_Stream(first, unpacked, where, most))
    for beginning, kind in _OTHER_KINDS.items():
        if first.startswith(beginning):
            raise UserError(f"{where}: it is {kind}, not text: unpack it, or save it as UTF-8 text")
    if first[_TAR_AT:] == _TAR:
        raise UserError(f"{where}: it is a .tar.gz of files: unpack it, and name what is inside")
    # UTF-16 and UTF-32 begin with a mark of theirs, or have a null byte in the first character.
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first[:2]:
        raise UserError(f"{where}: not UTF-8 but UTF-16, UTF-32 or no text: save the file as UTF-8")
    if first.startswith(BYTE_ORDER_MARK):
        text.read(len(BYTE_ORDER_MARK))
    return text


def decoded(line: bytes, where: str) -> str:
    """A line's text, or a UserError. Files that were joined have byte order marks inside, too."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(where, error.start) from error


def not_utf8(where: str, position: int) -> UserError:
    """What to say of bytes that are no UTF-8 at `position`."""
    return UserError(f"{where}: not UTF-8 at byte {position + 1}: save the file as UTF-8")


@contextmanager
def readable(where: object, errors: tuple[type[Exception], ...] = UNREADABLE) -> Iterator[None]:
    """Turns what damaged or missing files raise into a UserError."""
    try:
        yield
    except UserError:
        raise
    except errors as error:
        reason = getattr(error, "strerror", None)
        raise UserError(
            f"{where}: cannot be read ({reason})"
            if reason
            else f"{where}: cannot be read ({error}): is the download complete, and not encrypted?"
        ) from error


class _Stream(io.RawIOBase):
    """`first`, which was read of `file` already, and the rest of it."""

    def __init__(
        self,
        first: bytes,
        file: IO[bytes] | gzip.GzipFile,
        where: str | Path,
        most: int | None = None,
    ) -> None:
        self._first = first
        self._file = file
        self._where = where
        self._most = most
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._first:
            piece, self._first = self._first[: len(buffer)], self._first[len(buffer) :]
        else:
            with readable(self._where):
                piece = _some(self._file, len(buffer))
        self._read += len(piece)
        if self._most is not None and self._read > self._most:
            raise UserError(
                f"{self._where}: refused, for it unpacks to over {self._most:,} bytes; if it is to "
                "be trusted, unpack it and name the result"
            )
        buffer[: len(piece)] = piece
        return len(piece)


def _some(file: IO[bytes] | gzip.GzipFile, most: int) -> bytes:
    """At least a byte, unless the file has ended: a pipe is read as it is written."""
    read1 = getattr(file, "read1", file.read)
    piece: bytes = read1(most)
    return piece

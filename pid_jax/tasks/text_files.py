"""Text files: UTF-8, with or without a byte order mark, plain or compressed with gzip.

The first bytes of a file determine its format, not its name.
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

# Errors of reading a damaged file, zip member or gzip stream.
UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
# First bytes of other formats.
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
    """The open file, and its text as of `text_of`. Raises UserError if it cannot be opened."""
    with ExitStack() as stack:
        with readable(path):
            file = stack.enter_context(Path(path).open("rb"))
        yield file, text_of(file, path)


def text_of(file: IO[bytes], where: str | Path, *, most: int | None = None) -> BinaryIO:
    """The UTF-8 bytes of `file`, decompressed if gzip, without a byte order mark.

    The stream is lazy and does not decode. where: the file's name in messages. most: maximum
    decompressed size in bytes. Raises UserError, at the call or during reading, for unreadable
    files, UTF-16, UTF-32, other formats, and gzip files above `most`.
    """
    with readable(where):
        first = file.read(_FIRST_BYTES)
        text = io.BufferedReader(_Stream(first, file, where))
        if first.startswith(_GZIP):
            unpacked = gzip.GzipFile(fileobj=text)
            first = unpacked.read(_TAR_AT + len(_TAR))
            text = io.BufferedReader(_Stream(first, unpacked, where, most))
    for prefix, kind in _OTHER_KINDS.items():
        if first.startswith(prefix):
            raise UserError(f"{where}: it is {kind}, not text: unpack it, or save it as UTF-8 text")
    if first[_TAR_AT:] == _TAR:
        raise UserError(f"{where}: it is a .tar.gz of files: unpack it and name a file in it")
    # UTF-16 and UTF-32 have a byte order mark, or a null byte in the first character.
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first[:2]:
        raise UserError(f"{where}: not UTF-8 but UTF-16, UTF-32 or no text: save the file as UTF-8")
    if first.startswith(BYTE_ORDER_MARK):
        text.read(len(BYTE_ORDER_MARK))
    return text


def decoded(line: bytes, where: str) -> str:
    """A line's text, without the byte order marks of concatenated files.

    Raises UserError unless it is UTF-8.
    """
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(where, error.start) from error


def not_utf8(where: str, position: int) -> UserError:
    """The error for bytes that are not UTF-8 at `position`, counted from 0."""
    return UserError(f"{where}: not UTF-8 at byte {position + 1}: save the file as UTF-8")


@contextmanager
def readable(where: object, errors: tuple[type[Exception], ...] = UNREADABLE) -> Iterator[None]:
    """Turns the errors of damaged or missing files into UserError."""
    try:
        yield
    except UserError:
        raise
    except errors as error:
        reason = getattr(error, "strerror", None)
        raise UserError(
            f"{where}: cannot be read ({reason})"
            if reason
            else f"{where}: cannot be read ({error}): is the download complete and not encrypted?"
        ) from error


class _Stream(io.RawIOBase):
    """The bytes `first`, which were already read from `file`, and the rest of `file`."""

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
                f"{self._where}: refused because it unpacks to over {self._most:,} bytes: if you "
                "trust it, unpack it and name the result"
            )
        buffer[: len(piece)] = piece
        return len(piece)


def _some(file: IO[bytes] | gzip.GzipFile, most: int) -> bytes:
    """Up to `most` bytes, at least one before the end. Does not wait for a pipe to fill."""
    read1 = getattr(file, "read1", file.read)
    piece: bytes = read1(most)
    return piece

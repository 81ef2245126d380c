"""Token ids on disk: a data set that was tokenized once, read at random.

    DIRECTORY/
        index         one entry for each example: place, sizes and a checksum
        records       one record for each example: its lengths, then its token ids and its id, each
                      with a checksum
        tokens.json   statistics, and the sizes and digests of the other files

A record is read with two system calls, and nothing of the files stays in memory. Each read is
verified, so that a damaged file is an error, never other tokens. Reading takes no mapped memory,
because a failing disk would then end the process with a signal.
"""

import hashlib
import json
import os
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.token_source import Statistics, TokenizedExample
from pid_jax.errors import UserError

FORMAT = 2
"""Increases with every change of the files, of `Statistics`, and of what limits remove."""
ABOUT, INDEX, RECORDS = "tokens.json", "index", "records"
NO_TARGET = -1
_PLACE = struct.Struct("<qiii")
ENTRY_BYTES = _PLACE.size + 4
"""Of an entry of the index: a `Place`, and a CRC-32 of it and the number of the example."""
_PREAD = getattr(os, "pread", None)
_ENTRIES_AT_ONCE = 4096
_ENTRIES_IN_MEMORY = 2**14


class DamagedTokens(UserError):
    """A file of token ids is not as it was written."""


class StoredTokens:
    """A data set in a directory, a `TokenSource` that reads on access.

    Start-up time and memory do not depend on the number of examples. Several threads may read. The
    constructor checks `tokens.json` and the sizes of the other files, every read checks what it
    reads. All methods raise DamagedTokens, and UserError if a file cannot be read.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.about = read_about(self.directory)
        self.statistics: Statistics = self.about["statistics"]
        self.leading: list[int] = list(self.about["leading"])
        self.count = self.statistics.examples
        self.digest: str = self.about["digest"]
        """Digest of the texts that were tokenized."""
        self._dtype = np.dtype(self.about["dtype"])
        self.index = TokenIndex(self.directory, self.count)
        self._records = _Bytes(self.directory / RECORDS)
        self.document_lengths = StoredColumn(self.index, Place._fields.index("document"))
        self.subtask_counts = StoredColumn(self.index, Place._fields.index("subtasks"))
        self._latest: tuple[int, _Record] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TokenizedExample:
        index = range(len(self))[index]
        record = self._record(index)
        return self.select(index, np.arange(len(record.prompts)))

    def select(self, index: int, subtasks: Int[np.ndarray, " chosen"]) -> TokenizedExample:
        """The example with these of its subtasks only, in this order (0 is its first subtask)."""
        record, chosen = self._record(index), subtasks.tolist()
        return TokenizedExample(
            id=record.id,
            document=record.document,
            prompts=[record.prompts[subtask] for subtask in chosen],
            targets=[record.targets[subtask] for subtask in chosen],
        )

    def subtask_lengths(
        self, index: int, subtasks: Int[np.ndarray, " chosen"]
    ) -> tuple[Int[np.ndarray, " chosen"], Int[np.ndarray, " chosen"]]:
        """The tokens of the prompts and targets of these subtasks. 0 for no target."""
        # Not the whole record: every process needs the lengths of all documents of a batch.
        number = range(len(self))[index]
        place = self.index.place(number)
        content = self._records.read(place.start, _head_bytes(place.subtasks))
        lengths = np.frombuffer(self._check(content, number), "<i4").clip(0).astype(np.int64)
        return lengths[subtasks], lengths[place.subtasks :][subtasks]

    def targets_equal(self, index: int, target: Sequence[int]) -> Bool[np.ndarray, " subtasks"]:
        """True for the subtasks of an example that have this target (with its end token)."""
        wanted = list(target)
        return np.array([target == wanted for target in self._record(index).targets], bool)

    def _record(self, index: int) -> "_Record":
        # A training batch reads the targets of an example, and then its tokens. The assignment is
        # atomic.
        number, latest = range(len(self))[index], self._latest
        if latest is None or latest[0] != number:
            latest = self._latest = (number, self._read(number))
        return latest[1]

    def record(self, index: int) -> bytes:
        """The record of an example, as in the file of records."""
        return self._verified(index)[0]

    def _read(self, index: int) -> "_Record":
        content, document, subtasks = self._verified(index)
        return decoded(content, document, subtasks, self._dtype)

    def _verified(self, index: int) -> tuple[bytes, int, int]:
        """A record, and its document tokens and subtasks."""
        number = range(len(self))[index]
        start, size, document, subtasks = self.index.place(number)
        content = self._records.read(start, size)
        head = _head_bytes(subtasks)
        self._check(content[:head], number)
        self._check(content[head:], number)
        return content, document, subtasks

    def _check(self, content: bytes, number: int) -> bytes:
        """Some bytes without the checksum before them. Raises DamagedTokens if it differs."""
        if _check_of(content[4:], number) != int.from_bytes(content[:4], "little"):
            raise damaged(self.directory, f"{RECORDS}: example {number} has changed")
        return content[4:]

    def __repr__(self) -> str:
        return f"StoredTokens({str(self.directory)!r})"


class Place(NamedTuple):
    """An entry of the index."""

    start: int
    """Of the record, in the file of records."""
    bytes: int
    document: int
    """Tokens of the document."""
    subtasks: int


class TokenIndex:
    """The entries of all examples, read on access. The latest ones stay in memory."""

    def __init__(self, directory: Path, count: int) -> None:
        self.count = count
        self._directory = directory
        self._file = _Bytes(directory / INDEX)
        self._latest: dict[int, Place] = {}

    def place(self, number: int) -> Place:
        """The entry of an example."""
        # A training batch needs an entry up to four times: for the order of a window, its own
        # shape, the subtasks and the record.
        known = self._latest.get(number)
        if known is None:
            known = self._place(self._file.read(number * ENTRY_BYTES, ENTRY_BYTES), number)
            if len(self._latest) >= _ENTRIES_IN_MEMORY:
                self._latest.clear()
            self._latest[number] = known
        return known

    def places(self, numbers: range) -> Iterator[Place]:
        """The entries of a contiguous range of examples, for one pass."""
        for start in range(numbers.start, numbers.stop, _ENTRIES_AT_ONCE):
            portion = range(start, min(start + _ENTRIES_AT_ONCE, numbers.stop))
            content = self._file.read(start * ENTRY_BYTES, len(portion) * ENTRY_BYTES)
            for at, number in enumerate(portion):
                yield self._place(content[at * ENTRY_BYTES : (at + 1) * ENTRY_BYTES], number)

    def _place(self, entry: bytes, number: int) -> Place:
        if _check_of(entry[:-4], number) != int.from_bytes(entry[-4:], "little"):
            raise damaged(self._directory, f"{INDEX}: the entry of example {number} has changed")
        return Place(*_PLACE.unpack_from(entry))


class StoredColumn:
    """A field of the entries of all examples, read on access."""

    def __init__(self, index: TokenIndex, field: int) -> None:
        """field: its number in `Place`."""
        self._index, self._field = index, field

    def __len__(self) -> int:
        return self._index.count

    def __getitem__(self, index: Any) -> Any:
        """The number at an index, or an array for a slice or an array of indices."""
        if isinstance(index, int | np.integer):
            return self._index.place(range(self._index.count)[index])[self._field]
        field, everything = self._field, range(self._index.count)
        if isinstance(index, slice) and everything[index].step == 1:
            rows = (place[field] for place in self._index.places(everything[index]))
            return np.fromiter(rows, np.int64, len(everything[index]))
        chosen = everything[index] if isinstance(index, slice) else index
        numbers = np.asarray(chosen).tolist()
        return np.array([self._index.place(everything[n])[field] for n in numbers], np.int64)

    def __iter__(self) -> Iterator[int]:
        return (place[self._field] for place in self._index.places(range(len(self))))


class _Record(NamedTuple):
    """An example with all of its subtasks. A subtask without a target has an empty one."""

    id: str
    document: list[int]
    prompts: list[list[int]]
    targets: list[list[int]]


def encoded(
    number: int,
    example_id: str,
    document: bytes,
    prompts: Sequence[bytes],
    targets: Sequence[bytes | None],
    dtype: np.dtype[Any],
) -> bytes:
    """The record of example `number`. Token ids are bytes of `dtype`."""
    width = dtype.itemsize
    lengths = [len(prompt) // width for prompt in prompts]
    lengths += [NO_TARGET if target is None else len(target) // width for target in targets]
    head = np.array(lengths, "<i4").tobytes()
    body = b"".join(
        [
            document,
            *prompts,
            *(target for target in targets if target is not None),
            example_id.encode("utf-8", "surrogatepass"),
        ]
    )
    return _checked(head, number) + _checked(body, number)


def _checked(content: bytes, number: int) -> bytes:
    return _check_of(content, number).to_bytes(4, "little") + content


def _head_bytes(subtasks: int) -> int:
    """Of the lengths of a record, with their checksum."""
    return 4 + 8 * subtasks


def decoded(record: bytes, document: int, subtasks: int, dtype: np.dtype[Any]) -> _Record:
    """The example in a record with so many document tokens and subtasks."""
    lengths = struct.unpack_from(f"<{2 * subtasks}i", record, 4)
    ends = list(accumulate((max(length, 0) for length in lengths), initial=document))
    start = _head_bytes(subtasks) + 4
    tokens = np.frombuffer(record, dtype, ends[-1], start).tolist()
    rows = [tokens[at:end] for at, end in pairwise(ends)]
    return _Record(
        record[start + ends[-1] * dtype.itemsize :].decode("utf-8", "surrogatepass"),
        tokens[:document],
        rows[:subtasks],
        rows[subtasks:],
    )


def entry(number: int, start: int, size: int, document: int, subtasks: int) -> bytes:
    """The entry of example `number` in the index."""
    content = _PLACE.pack(start, size, document, subtasks)
    return content + _check_of(content, number).to_bytes(4, "little")


def _check_of(content: bytes, number: int) -> int:
    """A CRC-32 of some bytes that belong to an example."""
    return zlib.crc32(content, number & 0xFFFFFFFF)


class _Bytes:
    """A file that several threads read at random places."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise _unreadable(path.parent, error) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()

    def read(self, start: int, size: int) -> bytes:
        try:
            if _PREAD is not None:
                content = _PREAD(self._descriptor, size, start)
            else:  # Windows
                with self._lock:
                    os.lseek(self._descriptor, start, os.SEEK_SET)
                    content = os.read(self._descriptor, size)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if len(content) != size:
            raise damaged(self._path.parent, f"{self._path.name}: it ends too early")
        return content


def read_about(directory: Path) -> dict[str, Any]:
    """The content of tokens.json, with `Statistics` as "statistics".

    Raises DamagedTokens for another format, and for wrong sizes.
    """
    try:
        content: dict[str, Any] = json.loads((directory / ABOUT).read_bytes())
        digest, files = content.pop("self"), content["files"]
        if content["format"] != FORMAT or digest != _digest_of(content):
            raise damaged(directory, f"{ABOUT} has changed, or has another format")
        content["statistics"] = Statistics.from_json(content["statistics"])
        for name in (INDEX, RECORDS):
            size = (directory / name).stat().st_size
            if size != files[name]["bytes"]:
                raise damaged(directory, f"{name} has {size:,} bytes, not {files[name]['bytes']:,}")
    except DamagedTokens:
        raise
    except OSError as error:
        raise _unreadable(directory, error) from error
    except (ValueError, LookupError, TypeError) as error:
        raise damaged(directory, f"{ABOUT}: {error}") from error
    return content


def write_about(directory: Path, content: Mapping[str, Any]) -> None:
    """Writes tokens.json, with a digest of itself."""
    complete = {**content, "self": _digest_of(content)}
    (directory / ABOUT).write_text(json.dumps(complete), encoding="utf-8")


def verify(directory: Path) -> None:
    """Raises DamagedTokens unless all files have the digests that they were written with."""
    for name, file in read_about(directory)["files"].items():
        with (directory / name).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file["sha256"]:
                raise damaged(directory, f"{name} has changed")


def damaged(directory: Path, reason: str) -> DamagedTokens:
    """The error for a directory whose files are not as they were written."""
    return DamagedTokens(
        f"{directory}: damaged ({reason}): delete it, and run the same command again"
    )


def _unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be read: damage only if it is missing."""
    if isinstance(error, FileNotFoundError):
        return damaged(path, f"{Path(error.filename).name}: {error.strerror}")
    return UserError(f"{error.filename or path}: cannot be read ({error.strerror})")


def _digest_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

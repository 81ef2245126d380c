"""Token ids on disk: a data set that was tokenized once, read at random.

    DIRECTORY/
        index         one entry for each example: place, sizes and a checksum
        records       one record for each example: checksum, lengths, token ids, id
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

FORMAT = 1
ABOUT, INDEX, RECORDS = "tokens.json", "index", "records"
ENTRY = np.dtype(
    [
        ("start", "<i8"),
        ("bytes", "<i4"),
        ("document", "<i4"),
        ("subtasks", "<i4"),
        ("check", "<u4"),
    ]
)
"""The place of a record, its document tokens and subtasks, and a CRC-32 of these and the number of
the example."""
NO_TARGET = -1
_PLACE = struct.Struct("<qiii")
_ENTRIES_AT_ONCE = 4096


class DamagedTokens(UserError):
    """A file of token ids is not as it was written."""


class StoredTokens:
    """A data set in a directory, a `TokenSource` that reads on access.

    Start-up time and memory do not depend on the number of examples. Several threads may read. The
    constructor checks `tokens.json` and the sizes of the other files, every read checks what it
    reads. Raises DamagedTokens, from all methods.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.about = read_about(self.directory)
        self.statistics = Statistics.from_json(self.about["statistics"])
        self.leading: list[int] = list(self.about["leading"])
        self.count = self.statistics.examples
        self.digest: str = self.about["digest"]
        """Digest of the texts that were tokenized."""
        self._dtype = np.dtype(self.about["dtype"])
        self.index = TokenIndex(self.directory, self.count)
        self._records = _Bytes(self.directory / RECORDS)
        self.document_lengths = StoredColumn(self.index, "document")
        self.subtask_counts = StoredColumn(self.index, "subtasks")
        self._latest = (-1, _Record("", [], [], []))

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
        record, chosen = self._record(index), subtasks.tolist()
        prompts = [len(record.prompts[subtask]) for subtask in chosen]
        targets = [len(record.targets[subtask]) for subtask in chosen]
        return np.array(prompts, np.int64), np.array(targets, np.int64)

    def targets_equal(self, index: int, target: Sequence[int]) -> Bool[np.ndarray, " subtasks"]:
        """True for the subtasks of an example that have this target (with its end token)."""
        wanted = list(target)
        return np.array([target == wanted for target in self._record(index).targets], bool)

    def _record(self, index: int) -> "_Record":
        # A training batch reads the targets of an example, and then its tokens. The assignment is
        # atomic.
        latest = self._latest
        if latest[0] != index:
            latest = self._latest = (index, self._read(index))
        return latest[1]

    def _read(self, index: int) -> "_Record":
        number = range(len(self))[index]
        start, size, document, subtasks = self.index.place(number)
        content = self._records.read(start, size)
        if _check_of(content[4:], number) != int.from_bytes(content[:4], "little"):
            raise damaged(self.directory, f"{RECORDS}: example {number} has changed")
        return decoded(content, document, subtasks, self._dtype)

    def __repr__(self) -> str:
        return f"StoredTokens({str(self.directory)!r})"


class TokenIndex:
    """The entries of all examples, read on access."""

    def __init__(self, directory: Path, count: int) -> None:
        self.count = count
        self._directory = directory
        self._file = _Bytes(directory / INDEX)

    def entries(self, numbers: Sequence[int]) -> np.ndarray:
        """The entries of the index for these examples, of dtype `ENTRY`."""
        content = b"".join(self._file.read(n * ENTRY.itemsize, ENTRY.itemsize) for n in numbers)
        return self._checked(content, numbers)

    def entries_between(self, start: int, stop: int) -> np.ndarray:
        """The entries of the index for a range of examples."""
        size = ENTRY.itemsize
        content = self._file.read(start * size, (stop - start) * size)
        return self._checked(content, range(start, stop))

    def place(self, number: int) -> tuple[int, int, int, int]:
        """Where the record of an example starts, its bytes, document tokens and subtasks."""
        content = self._file.read(number * ENTRY.itemsize, ENTRY.itemsize)
        self._check(content, number)
        start, size, document, subtasks = _PLACE.unpack_from(content)
        return start, size, document, subtasks

    def _checked(self, content: bytes, numbers: Sequence[int]) -> np.ndarray:
        for at, number in enumerate(numbers):
            self._check(content[at * ENTRY.itemsize : (at + 1) * ENTRY.itemsize], number)
        return np.frombuffer(content, ENTRY)

    def _check(self, entry: bytes, number: int) -> None:
        if _check_of(entry[:-4], number) != int.from_bytes(entry[-4:], "little"):
            raise damaged(self._directory, f"{INDEX}: the entry of example {number} has changed")


class StoredColumn:
    """A field of the entries of all examples, read on access."""

    def __init__(self, index: TokenIndex, field: str) -> None:
        self._index, self._field = index, field

    def __len__(self) -> int:
        return self._index.count

    def __getitem__(self, index: Any) -> Any:
        entries = self._index.entries
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            if chosen.step == 1:
                return self._values(self._index.entries_between(chosen.start, chosen.stop))
            return self._values(entries(chosen))
        if np.ndim(index) == 0:
            return self._values(entries([range(len(self))[int(index)]]))[0]
        return self._values(entries(np.asarray(index).tolist()))

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), _ENTRIES_AT_ONCE):
            yield from self[start : start + _ENTRIES_AT_ONCE].tolist()

    def _values(self, entries: np.ndarray) -> Int[np.ndarray, " some"]:
        return entries[self._field].astype(np.int64)


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
    body = b"".join(
        [
            np.array(lengths, "<i4").tobytes(),
            document,
            *prompts,
            *(target for target in targets if target is not None),
            example_id.encode("utf-8", "surrogatepass"),
        ]
    )
    return _check_of(body, number).to_bytes(4, "little") + body


def decoded(record: bytes, document: int, subtasks: int, dtype: np.dtype[Any]) -> _Record:
    """The example in a record with so many document tokens and subtasks."""
    lengths = struct.unpack_from(f"<{2 * subtasks}i", record, 4)
    ends = list(accumulate((max(length, 0) for length in lengths), initial=document))
    start = 4 + 8 * subtasks
    tokens = np.frombuffer(record, dtype, ends[-1], start).tolist()
    rows = [tokens[at:end] for at, end in pairwise(ends)]
    return _Record(
        record[start + ends[-1] * dtype.itemsize :].decode("utf-8", "surrogatepass"),
        tokens[:document],
        rows[:subtasks],
        rows[subtasks:],
    )


def entry(number: int, start: int, size: int, document: int, subtasks: int) -> bytes:
    """The entry of example `number` in the index, as in `ENTRY`."""
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
            raise damaged(path.parent, f"{path.name}: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()

    def read(self, start: int, size: int) -> bytes:
        try:
            content = self._pread(start, size)
        except OSError as error:
            reason = f"{self._path.name}: {error.strerror}"
            raise damaged(self._path.parent, reason) from error
        if len(content) != size:
            raise damaged(self._path.parent, f"{self._path.name}: it ends too early")
        return content

    def _pread(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, start)
        with self._lock:  # Windows
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, size)


def read_about(directory: Path) -> dict[str, Any]:
    """The content of tokens.json. Raises DamagedTokens for another format, and for wrong sizes."""
    try:
        content: dict[str, Any] = json.loads((directory / ABOUT).read_bytes())
        digest, files = content.pop("self"), content["files"]
        if content["format"] != FORMAT or digest != _digest_of(content):
            raise damaged(directory, f"{ABOUT} has changed")
        for name in (INDEX, RECORDS):
            size = (directory / name).stat().st_size
            if size != files[name]["bytes"]:
                raise damaged(directory, f"{name} has {size:,} bytes, not {files[name]['bytes']:,}")
    except DamagedTokens:
        raise
    except OSError as error:
        raise damaged(directory, f"{Path(error.filename).name}: {error.strerror}") from error
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


def _digest_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

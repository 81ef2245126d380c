"""Prepared data: examples on disk as a data set of `tensorflow_datasets`, with random access.

    DATA_DIR/multiwoz24/1.0.0/
        multiwoz24-train.array_record-00000, ...    the examples, in the order of the source
        dataset_info.json, features.json            metadata of tensorflow_datasets
        metadata.json                               origin and checksums

A record has the keys of a JSON line: `id`, `document` and `subtasks`. The last is a JSON string,
because without TensorFlow tensorflow_datasets stores neither nested lists nor absent values.

The first number of a version is that of the layout (`FORMAT`). The second increases with every
change of the source, the options or the reader. A version never changes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import MissingData, UserError

FORMAT = 1
_EXAMPLES_PER_FILE = 2**17
_EXAMPLES_AT_ONCE = 256
_METADATA = "metadata.json"
_PARTS = tuple(field.name for field in fields(Subtask))
_LISTS = ("allowed", "references", "traits")


@dataclass(frozen=True)
class Origin:
    """The inputs of a data set. Equal origins give equal data sets."""

    task: str
    options: Mapping[str, Any]
    """The task options that affect the examples."""
    sources: Mapping[str, str]
    """The files of the source and their SHA-256."""
    reader: int = 1
    """The version of the task's reader. Versions may read different examples from a file."""


@dataclass(frozen=True)
class PreparedData:
    """One version and the content of its metadata.json."""

    directory: Path
    format: int
    origin: Origin
    left_out: Mapping[str, str]
    """The splits that the source lacks, each with the reader's message."""
    splits: Mapping[str, Mapping[str, "RecordFile"]]

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(map(int, self.directory.name.split(".")))

    def check_sizes(self, split: str) -> None:
        """Raises UserError for a missing file and for a file whose size has changed."""
        for name, record_file in self.splits[split].items():
            path = self.directory / name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _damaged(path, error.strerror) from error
            if size != record_file.bytes:
                raise _damaged(path, f"it has {size:,} bytes, not {record_file.bytes:,}")

    def check_content(self) -> None:
        """Raises UserError for a file whose content has changed. Reads all files."""
        for split, files in self.splits.items():
            self.check_sizes(split)
            for name, record_file in files.items():
                if sha256(self.directory / name) != record_file.sha256:
                    raise _damaged(self.directory / name, "its checksum differs")


@dataclass(frozen=True)
class RecordFile:
    """Size and checksum of a file of examples."""

    bytes: int
    sha256: str


class PreparedExamples(Sequence[Example]):
    """The examples of one split, read on access: a source for Grain.

    Raises MissingData for an absent split and UserError for damaged files.
    """

    def __init__(self, data: PreparedData, split: str) -> None:
        import tensorflow_datasets as tfds  # takes a second to import

        self._data = data
        self._split = split
        if split not in data.splits:
            reason = data.left_out.get(split, "it was not prepared")
            raise MissingData(
                f"{data.directory}: there is no split {split!r} ({reason}); it has "
                f"{', '.join(data.splits)}"
            )
        data.check_sizes(split)
        with _damage_reported(data.directory):
            self._records = tfds.builder_from_directory(data.directory).as_data_source(split)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        with _damage_reported(self._data.directory):
            record = self._records[index]
            return Example(
                id=record["id"].decode(),
                document=record["document"].decode(),
                subtasks=tuple(map(_subtask, json.loads(record["subtasks"]))),
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedExamples, (self._data, self._split)

    def __repr__(self) -> str:
        return f"PreparedExamples({str(self._data.directory)!r}, {self._split!r})"


def write(
    directory: Path,
    version: str,
    origin: Origin,
    splits: Mapping[str, Iterable[Example]],
    left_out: Mapping[str, str],
) -> None:
    """Writes a data set to an empty directory. It is incomplete until this returns.

    left_out: the absent splits and the reasons. Raises UserError if writing fails.
    """
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=folder_name(origin.task),
            version=tfds.core.Version(version),
            data_dir=str(directory),
            module_name=__name__,
        ),
        description=f"Examples of the task {origin.task}, as pid_jax reads them.",
        features=tfds.features.FeaturesDict({"id": text, "document": text, "subtasks": text}),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(),
    )
    writer = tfds.core.SequentialWriter(info, _EXAMPLES_PER_FILE, file_format="array_record")
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        records = map(_record, examples)
        while portion := list(islice(records, _EXAMPLES_AT_ONCE)):
            with _failing_disk():
                writer.add_examples({split: portion})
        with _failing_disk():
            writer.close_splits([split])
    info.metadata["pid_jax"] = {
        "format": FORMAT,
        **asdict(origin),
        "left_out": dict(left_out),
        "splits": {
            split: {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
                for path in map(Path, info.splits[split].filepaths)
            }
            for split in splits
        },
    }
    with _failing_disk():
        info.write_to_directory(directory)


def find(path: str | Path | None, task: str, options: Mapping[str, Any]) -> PreparedData | None:
    """The newest data set of a task at `path`, or None if nothing is prepared.

    `path` is the `--data_dir` of the command, the task's folder in it, or one version. Raises
    UserError if `path` has data sets, but none with these options and this layout.
    """
    if path is None or not str(path) or not Path(path).is_dir():
        return None
    path = Path(path)
    itself = _read(path)
    present = [itself] if itself else versions(path) or versions(path / folder_name(task))
    if not present:
        return None
    wanted = (FORMAT, task, as_json(options))
    matching = [
        data for data in present if (data.format, data.origin.task, data.origin.options) == wanted
    ]
    if not matching:
        there = "; ".join(
            f"{data.directory.name} is of {data.origin.task}, {_listed(data.origin.options)}, "
            f"in format {data.format}"
            for data in present
        )
        raise UserError(
            f"{path}: nothing there was prepared for task {task}, {_listed(options)}, in format "
            f"{FORMAT}: {there}; run python -m pid_jax.data.prepare for it, or name the source"
        )
    return matching[-1]


def versions(folder: Path) -> list[PreparedData]:
    """Every version in the folder of a task, the oldest first."""
    if not folder.is_dir():
        return []
    present = [data for path in folder.iterdir() if (data := _read(path)) is not None]
    return sorted(present, key=lambda data: data.version)


def folder_name(task: str) -> str:
    """A task's name for tensorflow_datasets, with "_" for the ":" of "module:Class"."""
    return re.sub(r"\W", "_", task)


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options after a round trip through JSON."""
    back: dict[str, Any] = json.loads(json.dumps(dict(options), default=str))
    return back


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(directory: Path) -> PreparedData | None:
    """The version in a directory, or None if it is not a version of prepared data."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", directory.name):
        return None
    try:
        about = json.loads((directory / _METADATA).read_bytes())["pid_jax"]
        return PreparedData(
            directory=directory,
            format=about["format"],
            origin=Origin(
                about["task"], about["options"], about["sources"], about.get("reader", 1)
            ),
            left_out=about["left_out"],
            splits={
                split: {name: RecordFile(**entry) for name, entry in files.items()}
                for split, files in about["splits"].items()
            },
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _record(example: Example) -> dict[str, str]:
    # As in a JSON line, a value of None is left out.
    subtasks = [
        {key: value for key in _PARTS if (value := getattr(subtask, key)) is not None}
        for subtask in example.subtasks
    ]
    return {"id": example.id, "document": example.document, "subtasks": json.dumps(subtasks)}


def _subtask(entry: Mapping[str, Any]) -> Subtask:
    return _shared_subtask(
        entry["id"],
        entry["prompt"],
        entry.get("target"),
        *(None if key not in entry else tuple(entry[key]) for key in _LISTS),
    )


# Most subtasks repeat. Sharing the objects halves the time to read.
_shared_subtask = lru_cache(maxsize=4096)(Subtask)


def _listed(options: Mapping[str, Any]) -> str:
    if not options:
        return "without options"
    return "with " + ", ".join(f"{key}={value!r}" for key, value in options.items())


@contextmanager
def _failing_disk() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
        raise UserError(f"the data set cannot be written ({error}): is the disk full?") from error


@contextmanager
def _damage_reported(directory: Path) -> Iterator[None]:
    """Turns the errors of tensorflow_datasets and ArrayRecord for damaged files into UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise _damaged(directory, error) from error


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(f"{path}: damaged ({reason}): delete this version and prepare it again")

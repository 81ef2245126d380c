"""Converts a task's source to a random-access data set: `python -m pid_jax.data.prepare`."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pid_jax import tasks
from pid_jax.atomic_file import new_directory
from pid_jax.data import prepared
from pid_jax.data.examples import Example
from pid_jax.data.prepared import Origin, PreparedData
from pid_jax.data.progress import with_progress
from pid_jax.errors import MissingData, UserError

log = logging.getLogger("pid_jax.data.prepare")  # the same name when run as __main__


def prepare(
    task_name: str,
    source: str | Path | None,
    data_dir: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    splits: Sequence[str] | None = None,
) -> PreparedData:
    """Writes a new version of the data set, or returns the present one if nothing has changed.

    splits: the splits to prepare, each required; None prepares all that the source has. Raises
    UserError for errors in the source and for a damaged version.
    """
    options = options or {}
    task = tasks.get(task_name, **options)
    folder = Path(data_dir) / prepared.folder_name(task_name)
    origin = Origin(
        task_name,
        prepared.as_json(tasks.reading_options(task, options)),
        _checksums(source, leaving_out=Path(data_dir)),
        tasks.reader_version(task),
    )
    present = prepared.versions(folder)
    for data in reversed(present):
        if (data.format, data.origin) == (prepared.FORMAT, origin) and (
            splits is None or set(splits) == set(data.splits)
        ):
            data.check_content()
            log.info("%s is up to date and its checksums match", data.directory)
            return data
    for line in _changes(present, origin):
        log.info("%s", line)

    directory = folder / _next_version(present)
    with new_directory(directory) as building:
        present_splits, left_out = _open_splits(task, source, splits)
        prepared.write(building, directory.name, origin, present_splits, left_out)
    [data] = [data for data in prepared.versions(folder) if data.directory == directory]
    for split, reason in left_out.items():
        log.warning("left out: %s (%s)", split, reason)
    return data


def _open_splits(
    task: tasks.Task, source: str | Path | None, splits: Sequence[str] | None
) -> tuple[dict[str, Iterable[Example]], dict[str, str]]:
    """The examples of each split that the source has, and why it lacks the others."""
    present_splits: dict[str, Iterable[Example]] = {}
    left_out = {}
    for split in splits or tasks.SPLITS:
        try:
            examples = iter(task.examples(source, split))
            first = next(examples, None)
        except MissingData as error:
            if splits:
                raise
            left_out[split] = str(error)
            continue
        if first is None:
            raise UserError(f"task {task.name}: the split {split!r} has no examples")
        present_splits[split] = with_progress(chain([first], examples), split, log)
    if not present_splits:
        raise UserError("; ".join(left_out.values()))
    return present_splits, left_out


def _checksums(source: str | Path | None, leaving_out: Path) -> dict[str, str]:
    """The SHA-256 of every file of the source except hidden ones.

    leaving_out: a directory inside the source to skip.
    """
    if source is None or not str(source):
        return {}
    source = Path(source)
    try:
        if not source.is_dir():
            return {source.name: prepared.sha256(source)}
        checksums = {}
        for folder, folders, files in os.walk(source):
            here = Path(folder)
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".") and (here / name).resolve() != leaving_out.resolve()
            ]
            for name in files:
                path = here / name
                if not name.startswith(".") and path.is_file():
                    checksums[path.relative_to(source).as_posix()] = prepared.sha256(path)
        return dict(sorted(checksums.items()))
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from error


def _changes(present: Sequence[PreparedData], origin: Origin) -> Iterator[str]:
    """Differences from the newest version with the same options, a message each."""
    for data in reversed(present):
        if data.origin.options != origin.options:
            continue
        if data.origin.reader != origin.reader:
            yield f"{data.directory} was created by another version of the task's reader"
        before, now = data.origin.sources, origin.sources
        for name in sorted({*before, *now}):
            if name not in now:
                yield f"the source of {data.directory} had {name}, which is now missing"
            elif name not in before:
                yield f"the source of {data.directory} had no {name}"
            elif before[name] != now[name]:
                yield f"{name} has changed since {data.directory} was created"
        return


def _next_version(present: Sequence[PreparedData]) -> str:
    of_format = [data.version[1] for data in present if data.version[0] == prepared.FORMAT]
    return f"{prepared.FORMAT}.{max(of_format, default=-1) + 1}.0"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `pid-jax prepare`."""
    from pid_jax.commands import prepare as command

    command.main(arguments, program="python -m pid_jax.data.prepare")


if __name__ == "__main__":
    main()

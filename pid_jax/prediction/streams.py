"""The input and the output of a prediction run: files, or standard input and output."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pid_jax.atomic_file import ResumableFile, partial_path
from pid_jax.errors import UserError
from pid_jax.prediction.answering import Counts, Output
from pid_jax.prediction.settings import STANDARD, Settings
from pid_jax.tasks import text_files


@contextmanager
def opened_input(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO, str]]:
    """The input as it is, the text in it, and its name in messages."""
    if path == STANDARD:
        name = "standard input"
        yield sys.stdin.buffer, text_files.text_of(sys.stdin.buffer, name), name
    else:
        with text_files.opened(path) as (file, text):
            yield file, text, str(path)


@contextmanager
def opened_output(settings: Settings, counts: Counts, digest: str) -> Iterator[Output]:
    """The output file, complete when the block ends, after the lines of an earlier run.

    `digest` identifies the checkpoint. Raises UserError where an earlier run had other settings.
    After an error in the block its message says how to go on.
    """
    _refuse_to_lose(settings)
    made_with = {**settings.generation, "dtype": settings.dtype, "checkpoint": digest}
    if settings.weights is not None:
        made_with["weights"] = settings.weights
    with ResumableFile(settings.output) as output:
        earlier = output.settings
        if settings.restart or earlier is None:
            output.restart(made_with)
        elif earlier != made_with:
            raise UserError(
                f"{output.partial} has answers of a run that was stopped and "
                f"{_difference(earlier, made_with)}. Repeat the command of that run to complete "
                "them, name another output, or drop them with --restart"
            )
        try:
            yield output
        except (UserError, KeyboardInterrupt) as error:
            if counts.documents == counts.documents_before:
                raise
            done = (
                f"{counts.documents:,} documents are answered, in {output.partial}: the same "
                "command goes on from there"
            )
            raise type(error)(f"{error}\n{done}" if str(error) else done) from error
        output.finish()


def _refuse_to_lose(settings: Settings) -> None:
    """Raises UserError where the input would be written to, or replaced by a part of it."""

    def is_input(path: Path) -> bool:
        return path.exists() and settings.input.exists() and path.samefile(settings.input)

    if is_input(partial_path(settings.output)):
        raise UserError(f"{settings.input} is where --output={settings.output} is being written")
    if settings.skip_bad_lines and is_input(settings.output):
        raise UserError(
            f"{settings.output} is the input, and --on-error=skip would leave its bad lines out: "
            "name another output"
        )


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if not earlier:
        return "does not say how it made them"
    different = [
        f"{name}={earlier.get(name, '(default)')}, not {now.get(name, '(default)')}"
        for name in sorted(earlier.keys() | now.keys())
        if name != "checkpoint" and earlier.get(name) != now.get(name)
    ]
    if earlier.get("checkpoint") != now["checkpoint"]:
        different.append("another checkpoint")
    return "had " + " and ".join(different)


class NoOutput:
    """The output of a process that writes nothing."""

    def next_line(self) -> None:
        """There is no line of an earlier run."""
        return None

    def append(self, lines: bytes) -> None:
        """Ignores the lines."""


class StandardOutput:
    """Standard output, which nothing can resume."""

    def next_line(self) -> None:
        """There is no line of an earlier run."""
        return None

    def append(self, lines: bytes) -> None:
        """Prints lines. Raises UserError where nobody reads them."""
        try:
            sys.stdout.buffer.write(lines)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Python would try once more at its exit, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise UserError("standard output was closed before all was written") from None
        except OSError as error:
            raise UserError(f"cannot write standard output: {error.strerror}") from error

"""Answered lines in the order of the input, each once, however often the run is stopped."""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pid_jax.data.examples import Example
from pid_jax.distributed import exchange, service
from pid_jax.errors import UserError
from pid_jax.evaluation.predictions import answer_in, answered
from pid_jax.inference.results import Generation


class Output(Protocol):
    """The destination of answered lines, such as a `pid_jax.atomic_file.ResumableFile`."""

    def next_line(self) -> bytes | None:
        """The next line that is there already, or None."""

    def append(self, lines: bytes) -> None:
        """Adds whole lines after those that were read."""


@dataclass
class Counts:
    """How much of a file is done."""

    read: int = 0
    """Documents, good ones."""
    documents: int = 0
    prompts: int = 0
    documents_before: int = 0
    """Those of `documents` that an earlier run answered."""
    bad_lines: int = 0


def answer_lines(
    lines: Iterator[tuple[str, Example]],
    output: Output,
    answer: Callable[[Sequence[Example]], Sequence[Sequence[Generation]]],
    *,
    documents_at_once: int,
    counts: Counts,
) -> None:
    """Appends an answered line to `output` for each of `lines` that it does not have already.

    `answer` receives `documents_at_once` examples at a time. They are the same ones whether or not
    an earlier run was stopped among them, so that the output does not depend on stops. Under
    several processes all call `answer`, and the first one, which has all answers, writes. Raises
    UserError if a line in `output` does not answer its document.
    """
    while window := list(itertools.islice(lines, documents_at_once)):
        present = exchange.of_first(functools.partial(_count_present, window, output))
        counts.documents += present
        counts.documents_before += present
        if present < len(window):
            answers = answer([example for _, example in window])
            if not service.is_first():
                continue
            pairs = zip(window[present:], answers[present:], strict=True)
            output.append(b"".join(_line(text, row) for (text, _), row in pairs))
            counts.documents += len(window) - present
        counts.prompts += sum(len(example.subtasks) for _, example in window)
    if output.next_line() is not None:
        raise _changed(f"there are answers to more than {counts.documents} documents")


def _count_present(window: Sequence[tuple[str, Example]], output: Output) -> int:
    """The number of documents, from the first on, that the output has answers to."""
    for number, (text, example) in enumerate(window):
        line = output.next_line()
        if line is None:
            return number
        if not _answers(line, text):
            raise _changed(f"the answer to document {example.id!r} is to another text")
    return len(window)


def _line(text: str, answers: Sequence[Generation]) -> bytes:
    return answered(text, answers).encode() + b"\n"


def _answers(line: bytes, text: str) -> bool:
    """Whether `line` is `text` with answers, to the byte."""
    try:
        answers = [answer_in(subtask) for subtask in json.loads(line)["subtasks"]]
        return _line(text, answers) == line
    except (ValueError, LookupError, TypeError, AttributeError):  # not even such a line
        return False


def _changed(what: str) -> UserError:
    return UserError(
        f"the input is not the one that the answers so far belong to: {what}. Restore the old "
        "input, name another output, or drop those answers with --restart"
    )

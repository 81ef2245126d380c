"""Answers as JSON lines: in order, each once, however often the run that makes them is stopped."""

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pid_jax import json_spans
from pid_jax.data.examples import Example
from pid_jax.errors import UserError
from pid_jax.inference.results import Generation, TokenLogprob
from pid_jax.json_text import json_text

OURS = frozenset({"prediction", "score", "finish_reason", "logprobs", "alternatives"})
"""The keys of a subtask that an answer sets; whatever had them before is dropped."""


def answered(text: str, answers: Sequence[Generation]) -> str:
    """A JSON line with "prediction" and "score" at the end of each subtask.

    All else is copied character by character. Subtasks have "alternatives" if, and only if, their
    answers do. A score of minus infinity is null. `text` must be a line that
    `tasks.jsonl.parse_line` takes.
    """
    start = json_spans.skip_white_space(text)
    [subtasks] = [span for span in json_spans.members(text, start) if span.key == "subtasks"]
    pieces = []
    at = start
    spans = json_spans.elements(text, subtasks.start)
    for span, answer in zip(spans, answers, strict=True):
        said = _said(answer)
        if answer.alternatives:
            said["alternatives"] = [_said(other) for other in answer.alternatives]
        rest = _without(OURS | said.keys(), text[span.start : span.end])
        pieces += [text[at : span.start], rest, ", ", json_text(said)[1:]]
        at = span.end
    return "".join((*pieces, text[at:].rstrip()))


def _without(keys: Collection[str], text: str) -> str:
    """An object less `keys`, of which it has others, up to the bracket that closes it."""
    spans = list(json_spans.members(text, 0))
    ends = [span.item_start for span in spans[1:]] + [spans[-1].end]
    kept = [(span, end) for span, end in zip(spans, ends, strict=True) if span.key not in keys]
    last, _ = kept.pop()
    pieces = [text[span.item_start : end] for span, end in kept]
    return "".join((text[: spans[0].item_start], *pieces, text[last.item_start : last.end]))


def _said(answer: Generation) -> dict[str, Any]:
    said: dict[str, Any] = {"prediction": answer.text, "score": answer.score}
    if answer.finish_reason is not None:
        said["finish_reason"] = answer.finish_reason
    if answer.logprobs is not None:
        said["logprobs"] = [
            {"token": one.token, "logprob": one.logprob, "top": [list(pair) for pair in one.top]}
            for one in answer.logprobs
        ]
    return said


def _answer_in(subtask: Mapping[str, Any]) -> Generation:
    """The answer that `answered` made this of."""
    alternatives = tuple(map(_answer_in, subtask.get("alternatives", ())))
    logprobs = subtask.get("logprobs")
    if logprobs is not None:
        logprobs = tuple(
            TokenLogprob(one["token"], one["logprob"], tuple(map(tuple, one["top"])))
            for one in logprobs
        )
    reason = subtask.get("finish_reason")
    return Generation(subtask["prediction"], [], subtask["score"], alternatives, reason, logprobs)


class Output(Protocol):
    """Where answered lines go; a `pid_jax.atomic_file.ResumableFile` is one."""

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
    """Appends an answered line to `output` for each of `lines` that it does not hold already.

    `answer` is given `documents_at_once` examples at a time, the same ones whether or not an
    earlier run was stopped among them, so that a stopped run ends with the very output of one
    that was not. Raises UserError if a line in `output` does not answer its document.
    """
    while window := list(itertools.islice(lines, documents_at_once)):
        kept = 0
        for text, example in window:
            line = output.next_line()
            if line is None:
                break
            if not _answers(line, text):
                raise _changed(f"what it says of document {example.id!r} answers another text")
            kept += 1
        counts.documents += kept
        counts.documents_before += kept
        if kept < len(window):
            answers = answer([example for _, example in window])
            pairs = zip(window[kept:], answers[kept:], strict=True)
            output.append(b"".join(_line(text, given) for (text, _), given in pairs))
            counts.documents += len(window) - kept
        counts.prompts += sum(len(example.subtasks) for _, example in window)
    if output.next_line() is not None:
        raise _changed(f"it answers more than {counts.documents} documents")


def _line(text: str, answers: Sequence[Generation]) -> bytes:
    return answered(text, answers).encode() + b"\n"


def _answers(line: bytes, text: str) -> bool:
    """Whether `line` is what answering `text` has led to, to the byte."""
    try:
        answers = [_answer_in(subtask) for subtask in json.loads(line)["subtasks"]]
        return _line(text, answers) == line
    except (ValueError, LookupError, TypeError, AttributeError):  # not even such a line
        return False


def _changed(what: str) -> UserError:
    return UserError(
        f"the input is not the one that the answers so far were given to: {what}. Bring the old "
        "input back, name another output, or drop those answers with --restart"
    )

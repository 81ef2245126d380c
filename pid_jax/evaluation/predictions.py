"""Predictions as JSON lines: the one reader and the one writer of them.

A line is a document with the predictions of its subtasks:

    {"id": "d1", "document": "...", "subtasks": [{"id": "q1", "prediction": "north", "score": -1}]}

`pid-jax eval` writes a line of its own for each example (`write_predictions`) and reads lines from
anywhere (`read_predictions`). `pid-jax predict` adds the answers to the lines of its input
(`answered`), and reads them back to resume (`answer_in`).
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pid_jax import json_spans
from pid_jax.atomic_file import replacing
from pid_jax.data.examples import Example
from pid_jax.errors import UserError
from pid_jax.inference.results import Generation, TokenLogprob
from pid_jax.json_text import json_text
from pid_jax.scoring import Answer
from pid_jax.tasks import jsonl, text_files
from pid_jax.tasks.fields import field, identifier_of, json_of, kind_of, optional

KEYS = frozenset({"prediction", "score", "finish_reason", "logprobs", "alternatives"})
"""The keys of a subtask that an answer sets. Earlier values of theirs are dropped."""


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
        entries = _entries(answer)
        if answer.alternatives:
            entries["alternatives"] = [_entries(other) for other in answer.alternatives]
        rest = _without(KEYS, text[span.start : span.end])
        pieces += [text[at : span.start], rest, ", ", json_text(entries)[1:]]
        at = span.end
    return "".join((*pieces, text[at:].rstrip()))


def _without(keys: Collection[str], text: str) -> str:
    """An object less `keys`, up to the bracket that closes it. It has other keys, too."""
    spans = list(json_spans.members(text, 0))
    ends = [span.item_start for span in spans[1:]] + [spans[-1].end]
    others = [(span, end) for span, end in zip(spans, ends, strict=True) if span.key not in keys]
    last, _ = others.pop()
    pieces = [text[span.item_start : end] for span, end in others]
    return "".join((text[: spans[0].item_start], *pieces, text[last.item_start : last.end]))


def _entries(answer: Generation) -> dict[str, Any]:
    entries: dict[str, Any] = {"prediction": answer.text, "score": answer.score}
    if answer.finish_reason is not None:
        entries["finish_reason"] = answer.finish_reason
    if answer.logprobs is not None:
        entries["logprobs"] = [
            {"token": one.token, "logprob": one.logprob, "top": [list(pair) for pair in one.top]}
            for one in answer.logprobs
        ]
    return entries


def answer_in(subtask: Mapping[str, Any]) -> Generation:
    """The answer in a subtask of a line of `answered`, without its token ids.

    Raises ValueError, LookupError, TypeError or AttributeError for anything else.
    """
    alternatives = tuple(map(answer_in, subtask.get("alternatives", ())))
    logprobs = subtask.get("logprobs")
    if logprobs is not None:
        logprobs = tuple(
            TokenLogprob(one["token"], one["logprob"], tuple(map(tuple, one["top"])))
            for one in logprobs
        )
    reason = subtask.get("finish_reason")
    return Generation(subtask["prediction"], [], subtask["score"], alternatives, reason, logprobs)


def write_predictions(
    path: Path, examples: Sequence[Example], answers: Sequence[Sequence[Answer]]
) -> None:
    """Writes a line for each example, complete or not at all. Raises UserError if it cannot."""
    lines = (json_text(_line(*pair)) + "\n" for pair in zip(examples, answers, strict=True))
    with replacing(path) as written:
        written.write_text("".join(lines), encoding="utf-8", newline="\n")


def _line(example: Example, answers: Sequence[Answer]) -> dict[str, Any]:
    subtasks: list[dict[str, Any]] = []
    for subtask, answer in zip(example.subtasks, answers, strict=True):
        question = {"id": subtask.id, "prompt": subtask.prompt, "target": subtask.target}
        score = {} if answer.score is None else {"score": answer.score}
        subtasks.append({**question, "prediction": answer.text, **score})
    return {"id": example.id, "document": example.document, "subtasks": subtasks}


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines that `write_predictions` wrote, as they are. Raises FileNotFoundError."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").split("\n") if line]


def read_predictions(path: str | Path, examples: Sequence[Example]) -> list[list[Answer]]:
    """The answers to `examples` in a file with the layout of predictions.jsonl.

    Raises UserError, naming the line and the id, for a malformed line, for ids that `examples`
    do not have or that come twice, and for a missing prediction.
    """
    expected = {example.id: example for example in examples}
    answers: dict[str, list[Answer]] = {}
    with text_files.opened(path) as (_, text):
        for number, line in jsonl.numbered_lines(text, path):
            where = f"{path}, line {number}"
            entry = json_of(text_files.decoded(line, where), where)
            identifier = identifier_of(entry, "id", where)
            if identifier not in expected:
                raise UserError(
                    f"{where}: no example of the split has the id {identifier!r}: the ids are "
                    f"such as {next(iter(expected))!r}"
                )
            if identifier in answers:
                raise UserError(f"{where}: a second line has the id {identifier!r}")
            answers[identifier] = _answers_of(
                entry, expected[identifier], f"{where}, {identifier!r}"
            )
    missing = [identifier for identifier in expected if identifier not in answers]
    if missing:
        raise UserError(
            f"{path}: no predictions for {len(missing):,} of {len(expected):,} examples, the first "
            f"of them {missing[0]!r}: every example must have some"
        )
    return [answers[identifier] for identifier in expected]


def _answers_of(entry: Mapping[str, Any], example: Example, where: str) -> list[Answer]:
    expected = {subtask.id for subtask in example.subtasks}
    answers: dict[str, Answer] = {}
    for number, subtask in enumerate(field(entry, "subtasks", list, where), start=1):
        here = f"{where}, subtask {number}"
        identifier = identifier_of(subtask, "id", here)
        if identifier not in expected:
            raise UserError(f"{here}: the example has no subtask with the id {identifier!r}")
        if identifier in answers:
            raise UserError(f"{here}: a second subtask has the id {identifier!r}")
        here = f"{here}, {identifier!r}"
        score = optional(subtask, "score", here)
        if not (score is None or type(score) in (int, float)):
            raise UserError(f'{here}: "score" must be a number, got {kind_of(score)}')
        if score is not None and not abs(score) <= sys.float_info.max:
            raise UserError(f'{here}: "score" must be a finite number, got {score}')
        answers[identifier] = Answer(field(subtask, "prediction", str, here), score)
    for subtask in example.subtasks:
        if subtask.id not in answers:
            raise UserError(f"{where}: no prediction for the subtask {subtask.id!r}")
    return [answers[subtask.id] for subtask in example.subtasks]

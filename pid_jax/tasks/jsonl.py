"""Your own data as JSON lines, one document a line.

    {"id": "d1", "document": "...", "subtasks": [{"id": "q1", "prompt": "...", "target": "..."}]}

`target` may be absent where only a prediction is wanted. Other keys are ignored.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.metrics.squad import token_f1
from pid_jax.tasks.task import SPLITS, Predictions, Report, check_split, prediction_for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JsonLines:
    """A directory of train.jsonl, validation.jsonl and test.jsonl, or one file for any split.

    `negative_target` is the target that says "nothing here", if your data have one: training can
    then see fewer of them.
    """

    negative_target: str | None = None

    @property
    def name(self) -> str:
        return "jsonl"

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        check_split(split)
        if path is None or str(path) == "":
            raise UserError("task jsonl reads a directory or a file: its path is not set")
        return read(_file_of_split(Path(path), split), require_target=True)

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """Exact match and token F1 in [0, 1], both means over all subtasks of all examples."""
        exact = f1 = 0.0
        total = 0
        for example in examples:
            for subtask in example.subtasks:
                if subtask.target is None:
                    raise UserError(
                        f"subtask {subtask.id!r} of example {example.id!r} has no target to "
                        "score against"
                    )
                prediction = prediction_for(predictions, example.id, subtask.id)
                exact += prediction.strip() == subtask.target.strip()
                f1 += token_f1(prediction, subtask.target)
                total += 1
        if total == 0:
            raise UserError("there is no subtask to score")
        return Report(
            metrics={"exact_match": exact / total, "f1": f1 / total},
            policy={
                "exact_match": "equal strings, white space at the ends aside",
                "f1": "SQuAD: words in common, without case, punctuation and articles",
                "mean": "over subtasks",
            },
        )


def read(path: str | Path, *, require_target: bool = False) -> Iterator[Example]:
    """The examples of one file, read as `read_lines` does."""
    for _, example in read_lines(path, require_target=require_target):
        yield example


def read_lines(path: str | Path, *, require_target: bool = False) -> Iterator[tuple[str, Example]]:
    """Reads one file, line by line: each line's text and its example; blank lines are skipped.

    Raises UserError, naming file and line, for whatever `parse_line` refuses, for bytes that
    are not UTF-8 and for a document id that was already used; and if there is no line at all.
    """
    path = Path(path)
    first_line_of: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for line_number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                text = _decoded(line, path, line_number)
                example = parse_line(text, path, line_number, require_target=require_target)
                if example.id in first_line_of:
                    raise UserError(
                        f"{path}, line {line_number}: the id {example.id!r} was already used in "
                        f"line {first_line_of[example.id]}"
                    )
                first_line_of[example.id] = line_number
                yield text, example
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not first_line_of:
        raise UserError(f"{path}: the file is empty, it has no line to read")


def parse_line(
    text: str, file: str | Path, line_number: int, require_target: bool = False
) -> Example:
    """Reads one line.

    Raises UserError, naming file and line, for what is not JSON, for missing keys and wrong
    types, an empty document, no subtasks, subtasks that share an id, and, with
    `require_target`, a missing target.
    """
    where = f"{file}, line {line_number}"
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON that can be read: {error}") from error
    if not isinstance(line, dict):
        raise UserError(f"{where}: expected an object {{...}}, got {_kind(line)}")

    document = _text(line, "document", where)
    if not document.strip():
        raise UserError(f'{where}: "document" is empty')
    if "subtasks" not in line:
        raise UserError(f'{where}: "subtasks" is missing')
    entries = line["subtasks"]
    if not isinstance(entries, list):
        raise UserError(f'{where}: "subtasks" must be a list, got {_kind(entries)}')
    if not entries:
        raise UserError(f'{where}: "subtasks" is empty: a document needs at least one prompt')

    subtasks: dict[str, Subtask] = {}
    for number, entry in enumerate(entries, start=1):
        subtask = _subtask(entry, f"{where}, subtask {number}", require_target)
        if subtask.id in subtasks:
            raise UserError(f"{where}: two subtasks have the id {subtask.id!r}")
        subtasks[subtask.id] = subtask
    return Example(_identifier(line, where), document, tuple(subtasks.values()))


def _subtask(entry: Any, where: str, require_target: bool) -> Subtask:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object {{...}}, got {_kind(entry)}")
    target = None
    if require_target or entry.get("target") is not None:
        target = _text(entry, "target", where)
    return Subtask(_identifier(entry, where), _text(entry, "prompt", where), target)


def _identifier(entry: Mapping[str, Any], where: str) -> str:
    identifier = _text(entry, "id", where)
    if not identifier:
        raise UserError(f'{where}: "id" is empty')
    return identifier


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    if key not in entry:
        raise UserError(f'{where}: "{key}" is missing')
    value = entry[key]
    if not isinstance(value, str):
        raise UserError(f'{where}: "{key}" must be a string, got {_kind(value)}')
    # JSON can escape half a surrogate pair, which no tokenizer and no file can take.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f'{where}: "{key}" has an unpaired surrogate, which is no character')
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _decoded(line: bytes, path: Path, line_number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {line_number}: not UTF-8 at byte {error.start + 1}: save the file as "
            "UTF-8"
        ) from error


def _file_of_split(path: Path, split: str) -> Path:
    if path.is_file():
        log.warning("%s is one file: it serves as the split %r, as it would for any", path, split)
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such file or directory")
    file = path / f"{split}.jsonl"
    if not file.is_file():
        present = [f"{name}.jsonl" for name in SPLITS if (path / f"{name}.jsonl").is_file()]
        raise UserError(
            f"{path}: there is no {file.name}; it has {', '.join(present) or 'no split at all'}"
        )
    return file

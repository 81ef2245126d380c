"""JSON lines: your own data, one document per line.

    {"id": "d1", "document": "...", "subtasks": [{"id": "q1", "prompt": "...", "target": "..."}]}

Data for prediction only needs no `target`. A subtask may have allowed outputs: `"allowed":
["north", "south"]`. Other keys are ignored.
"""

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.tasks.fields import checked, field, identifier_of, json_of, kind_of, optional
from pid_jax.tasks.source_files import SourceFiles
from pid_jax.tasks.task import (
    Predictions,
    Report,
    check_split,
    prediction_for,
    scoring_option,
    target_of,
)
from pid_jax.tasks.text_files import BYTE_ORDER_MARK, decoded, opened, readable
from pid_jax.tasks.text_scores import TextScores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JsonLines:
    """Reads train.jsonl, validation.jsonl and test.jsonl in a directory or a .zip, or one file.

    One file serves as any split. `negative_target` is the target that means "nothing here", if
    your data have one. Training can sample such subtasks at a lower rate. `metrics` names scores,
    see `TextScores`. `rouge_tokenizer`, "module:function", maps a text to its tokens, for texts
    in other scripts than Latin. Raises UserError for an invalid option.
    """

    negative_target: str | None = None
    metrics: str = scoring_option("exact_match,f1")
    rouge_tokenizer: str = scoring_option("")

    def __post_init__(self) -> None:
        self._scores()  # reports an invalid name early

    @property
    def name(self) -> str:
        return "jsonl"

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        check_split(split)
        source = SourceFiles(path)
        return _examples(source, _file_of_split(source, split))

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """The scores named by `metrics`, each over all subtasks of all examples."""
        predicted = []
        gold = []
        for example in examples:
            for subtask in example.subtasks:
                gold.append(target_of(example, subtask))
                predicted.append(prediction_for(predictions, example.id, subtask.id))
        if not gold:
            raise UserError("there is no subtask to score")
        scores = self._scores()
        metrics = scores(predicted, gold)
        policy = {**scores.policy, "mean": "over subtasks"}
        return Report(metrics, policy, lower_is_better=scores.lower_is_better)

    def _scores(self) -> TextScores:
        return TextScores(self.metrics, tokenizer=self.rouge_tokenizer)


def read(path: str | Path, *, require_target: bool = False) -> Iterator[Example]:
    """The examples of one file. See `read_stream`."""
    with opened(path) as (_, text):
        for _, example in read_stream(text, path, require_target=require_target):
            yield example


def read_stream(
    stream: Iterable[bytes],
    name: str | Path,
    *,
    require_target: bool = False,
    check: Callable[[Example, str], None] | None = None,
    on_bad_line: Callable[[UserError], None] | None = None,
) -> Iterator[tuple[str, Example]]:
    """Yields the text and the example of each line. Skips blank lines.

    stream: bytes of UTF-8 text, as opened by `text_files.opened`. name: its name in messages.
    check: called with an example and its location ("FILE, line N"), raises UserError for a bad
    one. A line is also bad if `parse_line` refuses it, if it is not UTF-8, or if an earlier good
    line has its document id. on_bad_line: receives the UserError of a bad line, which is then
    left out. Without it the error is raised.

    Raises UserError if the stream fails or has no line. Memory use is one line and 24 to 72 bytes
    per document id.
    """
    first_lines = _FirstLines()
    empty = True
    for line_number, line in numbered_lines(stream, name):
        empty = False
        try:
            text = decoded(line, f"{name}, line {line_number}")
            example = parse_line(text, name, line_number, require_target=require_target)
            if check is not None:
                check(example, f"{name}, line {line_number}")
            first_line = first_lines.of(example.id, line_number)
            if first_line != line_number:
                raise UserError(
                    f"{name}, line {line_number}: the id {example.id!r} was already used in line "
                    f"{first_line}"
                )
        except UserError as error:
            if on_bad_line is None:
                raise
            on_bad_line(error)
            continue
        yield text, example
    if empty:
        raise UserError(f"{name}: the file is empty, it has no line to read")


def numbered_lines(stream: Iterable[bytes], name: str | Path) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines and their numbers, starting at 1.

    Raises UserError, naming `name`, if the stream fails.
    """
    lines = enumerate(stream, start=1)
    while True:
        with readable(name):
            number, line = next(lines, (0, b""))
        if not number:
            return
        if line.removeprefix(BYTE_ORDER_MARK).strip():
            yield number, line


class _FirstLines:
    """The line of the first occurrence of each id, for millions of ids.

    An open-addressing table of 64-bit hashes, which takes a fraction of the memory of a dict. Two
    of n ids share a hash with probability n² / 2⁶⁵, which is 3e-6 for ten million.
    """

    def __init__(self) -> None:
        self._hashes = array("Q", [0]) * 1024
        self._lines = array("Q", [0]) * 1024  # 0: the slot is free
        self._ids = 0

    def of(self, identifier: str, line_number: int) -> int:
        """The line of the first occurrence, which is this line for a new id."""
        hashed = hash(identifier) & (2**64 - 1)
        slot = self._slot(hashed)
        if not self._lines[slot]:
            self._hashes[slot], self._lines[slot] = hashed, line_number
            self._ids += 1
            if 3 * self._ids > 2 * len(self._lines):
                self._double()
            return line_number
        return self._lines[slot]

    def _slot(self, hashed: int) -> int:
        last = len(self._lines) - 1
        slot = hashed & last
        while self._lines[slot] and self._hashes[slot] != hashed:
            slot = (slot + 1) & last
        return slot

    def _double(self) -> None:
        hashes, lines = self._hashes, self._lines
        self._hashes = array("Q", [0]) * (2 * len(hashes))
        self._lines = array("Q", [0]) * (2 * len(lines))
        for hashed, line in zip(hashes, lines, strict=True):
            if line:
                slot = self._slot(hashed)
                self._hashes[slot], self._lines[slot] = hashed, line


def parse_line(
    text: str, file: str | Path, line_number: int, require_target: bool = False
) -> Example:
    """The example in one line.

    An integer id becomes its decimal digits. Raises UserError, naming file and line, for invalid
    JSON, missing and repeated keys, wrong types, an empty document, no subtasks, subtasks with
    the same id, an empty list of allowed outputs, and, with `require_target`, a missing target.
    """
    where = f"{file}, line {line_number}"
    line = json_of(text, where)
    if isinstance(line, list):
        raise UserError(
            f"{where}: expected an object {{...}}, got a list: JSON lines are objects, one a line, "
            "with neither brackets around them nor commas between"
        )
    document = field(line, "document", str, where)
    if not document.strip():
        raise UserError(f'{where}: "document" is empty')
    entries = field(line, "subtasks", list, where)
    if not entries:
        raise UserError(f'{where}: "subtasks" is empty: a document needs at least one prompt')

    subtasks: dict[str, Subtask] = {}
    for number, entry in enumerate(entries, start=1):
        subtask = _subtask(entry, f"{where}, subtask {number}", require_target)
        if subtask.id in subtasks:
            raise UserError(f"{where}: two subtasks have the id {subtask.id!r}")
        subtasks[subtask.id] = subtask
    return Example(identifier_of(line, "id", where), document, tuple(subtasks.values()))


def _subtask(entry: Any, where: str, require_target: bool) -> Subtask:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object {{...}}, got {kind_of(entry)}")
    target = None
    if require_target or optional(entry, "target", where) is not None:
        target = field(entry, "target", str, where)
    allowed = _allowed(entry, where)
    return Subtask(
        identifier_of(entry, "id", where), field(entry, "prompt", str, where), target, allowed
    )


def _allowed(entry: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    texts = optional(entry, "allowed", where)
    if texts is None:
        return None
    if not isinstance(texts, list):
        raise UserError(f'{where}: "allowed" must be a list of strings, got {kind_of(texts)}')
    if not texts:
        raise UserError(f'{where}: "allowed" is empty, so nothing may be predicted: leave it out')
    return tuple(
        checked(text, str, f'"allowed" {n}', where) for n, text in enumerate(texts, start=1)
    )


def _file_of_split(source: SourceFiles, split: str) -> str:
    if source.is_one_file:
        [name] = source.names
        log.warning("%s is one file: it serves as the split %r", source.path, split)
        return name
    name = f"{split}.jsonl"
    return name if name in source.names else source.only(name)


def _examples(source: SourceFiles, name: str) -> Iterator[Example]:
    with source.open(name) as file:
        for _, example in read_stream(file, source.where(name), require_target=True):
            yield example

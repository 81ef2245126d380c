"""ACI-Bench: a clinical note from a conversation, one prompt for each of its four divisions.

Reads the unmodified release (wyim/aci-bench, `data/`): challenge_data_json/SPLIT_DIVISION.json,
{"data": [{"src": dialogue, "tgt": division, "file": id}]}. Without these files it reads the full
notes in challenge_data/SPLIT.csv and cuts them with `divisions`.

Defined by Yim et al. 2023 (Scientific Data 10:586) and the evaluation in that repository.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.metrics.rouge import Tokenizer, rouge
from pid_jax.tasks.fields import field, identifier_of
from pid_jax.tasks.source_files import SourceFiles
from pid_jax.tasks.task import (
    Predictions,
    Report,
    check_split,
    prediction_for,
    scoring_option,
    target_of,
)
from pid_jax.tasks.text_scores import rouge_policy, rouge_tokenizer

PROMPTS = {
    "subjective": "subjective: chief complaint, history of present illness, review of systems",
    "objective_exam": "objective exam: vitals and physical examination",
    "objective_results": "objective results: findings of tests and imaging",
    "assessment_and_plan": "assessment and plan: problems, reasoning, treatment, follow-up",
}
DIVISIONS = tuple(PROMPTS)

EMPTY = "#####EMPTY#####"
"""The release's text for a division that a note does not have."""
LINE_BREAK = "__lf1__"
"""The official evaluation's token for a line break."""

# Headers that start a division, from baselines/sectiontagger.py of wyim/aci-bench, without those
# that another entry covers. A space matches any white space or none. A header with a colon must
# be followed by a colon or by the end of the line. Matching ignores case.
_HEADERS = {
    "subjective": (
        "chief complaint", "cc :", "reason for visit :", "history of present illness", "history :",
        "hpi", "interval history :", "interval hx :", "subjective :", "ros :", "review of system :",
        "review of systems :", "social history", "past history",
    ),
    "objective_exam": (
        "physical exam", "physical findings :", "examination :", "exam :", "pe :",
        "vitals reviewed",
    ),
    "objective_results": ("results", "findings :"),
    "assessment_and_plan": (
        "assessment and plan", "assessment & plan :", "assessment :", "a / p :", "ap :", "a:",
        "plan :", "plan of care :", "p:", "summary plan", "medical decision-making plan :",
        "disposition / plan :",
    ),
}  # fmt: skip
# Only the upper-case header starts a division. In lower case it is part of the results.
_IMPRESSION = re.compile(r"\s*IMPRESSION")

_TEST_SETS = {
    "test1": "clinicalnlp_taskB_test1",
    "test2": "clinicalnlp_taskC_test2",
    "test3": "clef_taskC_test3",
}


def divisions(note: str) -> dict[str, str]:
    """Cuts a note into divisions as the official evaluation does.

    A division starts at the first line with one of its headers and ends where the next division
    starts. Text before the first header is subjective. A division may be missing. The returned
    texts, concatenated in order, are `note`.
    """
    starts: dict[str, int] = {}
    position = 0
    for line in note.split("\n"):
        division = _division_of_header(line)
        if division is None and position == 0:
            division = "subjective"
        if division is not None:
            starts.setdefault(division, position)
        position += len(line) + 1
    ends = [*list(starts.values())[1:], len(note)]
    return {
        division: note[start:end]
        for (division, start), end in zip(starts.items(), ends, strict=True)
    }


def joined(texts: Mapping[str, str]) -> str:
    """The note that consists of these divisions in order, without empty ones.

    Every division starts on a new line.
    """
    note = ""
    for division in DIVISIONS:
        text = texts.get(division, "")
        if text.strip() and EMPTY not in text:
            note += text if not note or note.endswith("\n") else f"\n{text}"
    return note


def note_scores(
    predictions: Sequence[str], references: Sequence[str], *, tokenizer: Tokenizer | None = None
) -> dict[str, dict[str, float]]:
    """ROUGE in [0, 1] of full notes, under "note", and of each division, under its name.

    `divisions` cuts both sides. For the score of a division a line break becomes the word `lf1`,
    so rougeLsum equals rougeL, and a missing division becomes the word `empty`. (The official
    evaluation leaves this word out if no note of a side has the division.) Raises UserError as
    `pid_jax.metrics.rouge` does.

    Defined by evaluation/evaluate_fullnote.py of wyim/aci-bench.
    """
    scores = {"note": rouge(predictions, references, tokenizer=tokenizer)}
    predicted = [_for_scoring(note) for note in predictions]
    gold = [_for_scoring(note) for note in references]
    for division in DIVISIONS:
        scores[division] = rouge(
            [note.get(division, EMPTY) for note in predicted],
            [note.get(division, EMPTY) for note in gold],
            tokenizer=tokenizer,
        )
    return scores


@dataclass(frozen=True)
class AciBench:
    """A document is a conversation, with one prompt for each division of its note.

    `test_set` selects the split "test": "test1" (MEDIQA-Chat task B), "test2" (MEDIQA-Chat task
    C) or "test3" (MEDIQA-Sum task C). `line_break` replaces line breaks in targets, and scoring
    replaces it with line breaks in predictions. A tokenizer that drops line breaks, such as T5's,
    needs one, for example "|", which no note contains. `rouge_tokenizer` is that of the task
    jsonl. Raises UserError for an invalid option.
    """

    test_set: str = "test1"
    line_break: str = "\n"
    rouge_tokenizer: str = scoring_option("")

    negative_target = None

    def __post_init__(self) -> None:
        if self.test_set not in _TEST_SETS:
            raise UserError(
                f"task option test_set={self.test_set!r}: choose from {', '.join(_TEST_SETS)}"
            )
        if not self.line_break:
            raise UserError("task option line_break is empty: lines would run into each other")
        rouge_tokenizer(self.rouge_tokenizer)  # reports an invalid name early

    @property
    def name(self) -> str:
        return "aci_bench"

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """One example for each conversation, in the order of the release.

        Raises UserError for missing files and for malformed ones, naming the entry.
        """
        check_split(split)
        stem = {"train": "train", "validation": "valid", "test": _TEST_SETS[self.test_set]}[split]
        source = SourceFiles(path)
        files = [f"{stem}_{division}.json" for division in DIVISIONS]
        notes = _cut_notes(source, files) if source.named(*files) else _full_notes(source, stem)
        return map(self._example, notes)

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """ROUGE in [0, 1] of the notes that consist of the divisions.

        The metrics are those of whole notes ("rouge1", ...) and of each division
        ("subjective_rouge1", ...).
        """
        gold = []
        predicted = []
        for example in examples:
            targets = {s.id: target_of(example, s) for s in example.subtasks}
            texts = {s.id: prediction_for(predictions, example.id, s.id) for s in example.subtasks}
            gold.append(self._note(targets))
            predicted.append(self._note(texts))
        scores = note_scores(predicted, gold, tokenizer=rouge_tokenizer(self.rouge_tokenizer))
        return Report(
            metrics=scores["note"]
            | {
                f"{division}_{kind}": score
                for division in DIVISIONS
                for kind, score in scores[division].items()
            },
            tables={
                f"{kind} of the note and its divisions": {
                    part: of_part[kind] for part, of_part in scores.items()
                }
                for kind in scores["note"]
            },
            policy={
                "data": f"ACI-Bench; the split test is {_TEST_SETS[self.test_set]}",
                "rouge": f"{rouge_policy(self.rouge_tokenizer)}, mean over notes",
                "note": "the generated divisions in order, without empty ones",
                "divisions": "cut from the note by its headers, as the official evaluation does; "
                f"line breaks are {LINE_BREAK}, a missing one is {EMPTY}",
            },
        )

    def _example(self, note: tuple[str, str, Mapping[str, str]]) -> Example:
        identifier, dialogue, texts = note
        return Example(
            identifier,
            dialogue,
            tuple(
                Subtask(division, prompt, texts[division].replace("\n", self.line_break))
                for division, prompt in PROMPTS.items()
            ),
        )

    def _note(self, texts: Mapping[str, str]) -> str:
        mark = self.line_break.strip()
        if not mark:
            return joined(texts)
        pattern = re.compile(rf" *{re.escape(mark)} *")
        return joined({division: pattern.sub("\n", text) for division, text in texts.items()})


def _pattern(headers: Sequence[str]) -> re.Pattern[str]:
    alternatives = []
    for header in headers:
        pattern = re.escape(header).replace(r"\ ", r"\s*")
        alternatives.append(pattern)
        if header.endswith(":"):
            alternatives.append(rf"{pattern[:-1]}\s*$")
    return re.compile(rf"\s*(?:{'|'.join(alternatives)})", re.IGNORECASE)


_PATTERNS = {division: _pattern(headers) for division, headers in _HEADERS.items()}


def _division_of_header(line: str) -> str | None:
    """The division whose header the line has, or None."""
    for division, pattern in _PATTERNS.items():
        if pattern.match(line):
            return division
    return "assessment_and_plan" if _IMPRESSION.match(line) else None


def _for_scoring(note: str) -> dict[str, str]:
    cut = divisions(note.replace(LINE_BREAK, "\n"))
    return {division: text.replace("\n", LINE_BREAK) for division, text in cut.items()}


def _cut_notes(
    source: SourceFiles, files: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Identifier, dialogue and divisions of each entry.

    Raises UserError if the entries of the files differ.
    """
    names = [source.only(file) for file in files]
    read = [
        list(_entries(source, name, division))
        for name, division in zip(names, DIVISIONS, strict=True)
    ]
    lengths = [len(entries) for entries in read]
    if len(set(lengths)) > 1:
        raise UserError(
            f"{source.path}: the files of the divisions differ in length: "
            + ", ".join(f"{n} in {name}" for n, name in zip(lengths, names, strict=True))
        )
    for number, entries in enumerate(zip(*read, strict=True), start=1):
        identifier, dialogue, _ = entries[0]
        for name, (other_identifier, other_dialogue, _) in zip(names, entries, strict=True):
            if (other_identifier, other_dialogue) != (identifier, dialogue):
                raise UserError(
                    f"{source.where(name)}, entry {number}: its file or src is not that of entry "
                    f"{number} of {source.where(names[0])} ({identifier})"
                )
        texts = [text for _, _, text in entries]
        yield identifier, dialogue, dict(zip(DIVISIONS, texts, strict=True))


def _entries(source: SourceFiles, name: str, division: str) -> Iterator[tuple[str, str, str]]:
    """Identifier, dialogue and text of each entry of a division's file."""
    where = source.where(name)
    identifiers: set[str] = set()
    entries = field(source.read_json(name), "data", list, where)
    if not entries:
        raise UserError(f"{where}: it has no entry")
    for number, entry in enumerate(entries, start=1):
        here = f"{where}, entry {number}"
        identifier = identifier_of(entry, "file", here).removesuffix(f"-{division}")
        dialogue = field(entry, "src", str, here)
        _check(identifier, dialogue, identifiers, here)
        yield identifier, dialogue, field(entry, "tgt", str, here)


def _full_notes(source: SourceFiles, stem: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Identifier, dialogue and divisions of each row of the full notes."""
    name = source.only(f"{stem}.csv")
    where = source.where(name)
    rows = csv.DictReader(io.StringIO(source.read_text(name), newline=""), strict=True)
    identifiers: set[str] = set()
    try:
        for number, row in enumerate(rows, start=1):
            here = f"{where}, row {number}"
            dialogue, note = field(row, "dialogue", str, here), field(row, "note", str, here)
            identifier = (
                f"{field(row, 'encounter_id', str, here)}-{field(row, 'dataset', str, here)}"
            )
            _check(identifier, dialogue, identifiers, here)
            cut = divisions(note)
            yield identifier, dialogue, {d: cut.get(d, f"{d}: {EMPTY}.\n") for d in DIVISIONS}
    except csv.Error as error:
        raise UserError(f"{where}: not a CSV file that can be read: {error}") from error
    if not identifiers:
        raise UserError(f"{where}: it has no row")


def _check(identifier: str, dialogue: str, identifiers: set[str], where: str) -> None:
    if not dialogue.strip():
        raise UserError(f"{where}: the dialogue is empty")
    if identifier in identifiers:
        raise UserError(f"{where}: a second entry is called {identifier!r}")
    identifiers.add(identifier)

"""SQuAD 1.1 and 2.0, and RadQA: a paragraph as the document, its questions as the prompts.

All share a layout: {"data": [{"paragraphs": [{"context": ..., "qas": [{"id", "question",
"answers": [{"text", "answer_start"}], "is_impossible"}]}]}]}. A directory or a .zip has a file for
each split. A single file serves as any split. RadQA needs credentials of PhysioNet.

Defined by Rajpurkar et al. 2016 (arXiv 1606.05250) and 2018 (arXiv 1806.03822), and Soni et al.
2022 (RadQA, LREC).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.metrics.squad import Version, squad
from pid_jax.tasks.fields import field, identifier_of
from pid_jax.tasks.source_files import SourceFiles
from pid_jax.tasks.task import Predictions, Report, check_split, prediction_for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuestionAnswering:
    """A paragraph is a document, its questions are the prompts, the first answer is the target.

    Questions without answers in the file can be predicted, but not scored.
    """

    name: ClassVar[str]
    data: ClassVar[str]
    rules: ClassVar[Version]
    """The SQuAD version whose official evaluation applies."""
    files: ClassVar[Mapping[str, Sequence[str]]]
    """The file names of each split. The first present one is read."""

    @property
    def negative_target(self) -> str | None:
        """The target of questions without an answer, or None if every question has one."""
        return None

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """One example for each paragraph with questions, in the order of the file.

        Raises MissingData for a missing split and UserError for a malformed file, naming the
        paragraph.
        """
        check_split(split)
        source = SourceFiles(path)
        name = self._file(source, split)
        return self._examples(source.where(name), source.read_json(name))

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """Exact match and F1 in percent over all questions. See `pid_jax.metrics.squad`."""
        references: dict[str, Sequence[str]] = {}
        answers: dict[str, str] = {}
        for example in examples:
            for subtask in example.subtasks:
                if subtask.references is None:
                    raise UserError(
                        f"question {subtask.id!r} of paragraph {example.id} has no answers to "
                        "score against: this file is for predictions only"
                    )
                references[subtask.id] = subtask.references
                answer = prediction_for(predictions, example.id, subtask.id)
                answers[subtask.id] = "" if answer.strip() == self.negative_target else answer
        policy = {
            "data": self.data,
            "normalisation": "lower case, no ASCII punctuation, no a, an, the; white space",
            "answers": "the best of all",
            "rules": f"those of SQuAD {self.rules}'s evaluation",
        }
        if self.negative_target is not None:
            policy["no answer"] = f'predicted as "{self.negative_target}" or as nothing'
        return Report(metrics=squad(answers, references, version=self.rules), policy=policy)

    def _file(self, source: SourceFiles, split: str) -> str:
        if source.is_one_file:
            [name] = source.names
            log.warning("%s is one file: it serves as the split %r", source.path, split)
            return name
        for file in self.files[split]:
            if source.named(file):
                name = source.only(file)
                if file != self.files[split][0]:
                    log.warning(
                        "%s has no %s, which is not public: %s serves as the split %r",
                        source.path, self.files[split][0], name, split,
                    )  # fmt: skip
                return name
        return source.only(*self.files[split])  # raises MissingData, naming the present files

    def _examples(self, where: str, content: Any) -> Iterator[Example]:
        articles = field(content, "data", list, where)
        identifiers: set[str] = set()
        for article_number, article in enumerate(articles, start=1):
            here = f"{where}, article {article_number}"
            paragraphs = field(article, "paragraphs", list, here)
            for paragraph_number, paragraph in enumerate(paragraphs, start=1):
                example = self._example(
                    paragraph,
                    f"{article_number}:{paragraph_number}",
                    f"{here}, paragraph {paragraph_number}",
                )
                for subtask in example.subtasks:
                    if subtask.id in identifiers:
                        raise UserError(
                            f"{here}, paragraph {paragraph_number}: a second question has the id "
                            f"{subtask.id!r}"
                        )
                    identifiers.add(subtask.id)
                if example.subtasks:
                    yield example
        if not identifiers:
            raise UserError(f"{where}: it asks no question")

    def _example(self, paragraph: Any, identifier: str, where: str) -> Example:
        document = field(paragraph, "context", str, where)
        if not document.strip():
            raise UserError(f'{where}: "context" is empty')
        questions = field(paragraph, "qas", list, where)
        return Example(
            identifier,
            document,
            tuple(
                self._subtask(question, f"{where}, question {number}")
                for number, question in enumerate(questions, start=1)
            ),
        )

    def _subtask(self, question: Any, where: str) -> Subtask:
        identifier = identifier_of(question, "id", where)
        prompt = field(question, "question", str, where).strip()
        answers = [
            field(answer, "text", str, f"{where}, answer {number}")
            for number, answer in enumerate(
                field(question, "answers", list, where) if "answers" in question else (), start=1
            )
        ]
        # Published test sets for prediction only have "answers": [] and no "is_impossible".
        if not answers and "is_impossible" not in question:
            return Subtask(identifier, prompt)
        target = answers[0] if answers else self.negative_target
        if target is None:
            raise UserError(
                f"{where}: it has no answer, but {self.data} requires one: is this SQuAD 2.0 "
                "(task squad2)?"
            )
        if answers and target.strip() == self.negative_target:
            raise UserError(
                f"{where}: its answer {target!r} is the text for questions without an answer: "
                "choose another text with the task option no_answer"
            )
        return Subtask(identifier, prompt, target, references=tuple(answers))


@dataclass(frozen=True)
class Squad1(QuestionAnswering):
    """Every question has an answer. The test set is not public: "test" reads the dev file."""

    name = "squad1"
    data = "SQuAD 1.1"
    rules = "1.1"
    files: ClassVar = {
        "train": ("train-v1.1.json",),
        "validation": ("dev-v1.1.json",),
        "test": ("test-v1.1.json", "dev-v1.1.json"),
    }


@dataclass(frozen=True)
class _WithNoAnswer(QuestionAnswering):
    """`no_answer` is the target of a question that the paragraph does not answer."""

    rules = "2.0"

    no_answer: str = "unanswerable"

    def __post_init__(self) -> None:
        if not self.no_answer or self.no_answer != self.no_answer.strip():
            raise UserError(
                f"task option no_answer={self.no_answer!r}: it must be a non-empty text without "
                "white space at either end"
            )

    @property
    def negative_target(self) -> str | None:
        return self.no_answer


@dataclass(frozen=True)
class Squad2(_WithNoAnswer):
    """SQuAD 2.0. The test set is not public: "test" reads the dev file."""

    name = "squad2"
    data = "SQuAD 2.0"
    files: ClassVar = {
        "train": ("train-v2.0.json",),
        "validation": ("dev-v2.0.json",),
        "test": ("test-v2.0.json", "dev-v2.0.json"),
    }


@dataclass(frozen=True)
class RadQa(_WithNoAnswer):
    """RadQA: questions on the findings and impressions of radiology reports."""

    name = "radqa"
    data = "RadQA"
    files: ClassVar = {
        "train": ("train.json",),
        "validation": ("dev.json",),
        "test": ("test.json",),
    }

"""A task's score over a checkpoint, or over predictions made elsewhere.

`python eval.py` does the first, `python -m pid_jax.evaluation` the second; see their --help.
"""

import argparse
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pid_jax import html_report, tasks
from pid_jax.atomic_file import check_writable, replacing
from pid_jax.command_line import add_task_options, task_options, user_errors
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.examples import Example
from pid_jax.data.tokenizing import Limits, TokenizedExamples
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.request import Method
from pid_jax.inference.results import Generation, NotComputable
from pid_jax.json_text import json_text
from pid_jax.models.protocol import control_token_ids
from pid_jax.scoring import Answer, Evaluation, Lengths, Run, scored, summary, table
from pid_jax.tasks import Task, jsonl, text_files
from pid_jax.tasks.fields import field, identifier_of, json_of, kind_of, optional

log = logging.getLogger(__name__)

FILES = METRICS, PREDICTIONS, REPORT = ("metrics.json", "predictions.jsonl", "report.html")

DESCRIPTION = """\
Scores predictions that were made elsewhere, and prints the scores with the version of the data
and the rules that they follow.

  python -m pid_jax.evaluation --predictions=mine.jsonl --task=multiwoz24 --path=MULTIWOZ2.4.zip

Each line has the predictions of one document, under the ids that the task gives:

  {"id": "MUL0003.json:0", "subtasks": [{"id": "hotel-area", "prediction": "north"}, ...]}

The lines may be in any order; a subtask may have a "score", the natural logarithm of its
prediction's probability; other keys, as eval.py writes them, are ignored. Every subtask of the
split needs its prediction.
"""


def evaluate(
    model: PidModel,
    task: Task,
    examples: Sequence[Example],
    *,
    limits: Limits,
    batch_size: int = 16,
    method: Method = "pid",
    after_batch: Callable[[float, float], None] | None = None,
    predictions: str | Path | None = None,
) -> Evaluation:
    """Generates an answer to every subtask of `examples` and scores them with `task`.

    Documents, prompts and answers are cut at `limits`, the same as in training. `after_batch`
    is called with a batch's number of documents and its seconds. predictions: a file, in the
    layout of predictions.jsonl, to write before anything is scored: a metric that fails loses no
    answer, nor does a full disk while the system's temporary directory has room. Raises UserError
    if there is nothing to score or no tokenizer to read it with.
    """
    _check_any(examples, task)
    if model.tokenizer is None:
        raise UserError("the checkpoint has no tokenizer: an evaluation needs one to read text")
    tokenized = TokenizedExamples(
        examples,
        model.tokenizer,
        limits,
        end_token_id=model.config.eos_token_id,
        text_of=Detokenizer(model.tokenizer, control_token_ids(model.config)).text,
    )
    targets = tokenized.target_report()
    if targets.changed:
        log.warning("%s: no prediction can equal these", targets)
    per_document: list[float] = []

    def timed(documents: float, seconds: float) -> None:
        per_document.append(seconds / documents)
        if after_batch is not None:
            after_batch(documents, seconds)

    inputs = [tokenized[i] for i in range(len(examples))]
    started = time.perf_counter()
    try:
        generated = model.generate(
            [example.document for example in inputs],
            [example.prompts for example in inputs],
            batch_size=batch_size,
            after_batch=timed,
            allowed=_allowed(examples),
            progress=False if after_batch is not None else None,
            max_new_tokens=limits.target_tokens,
            method=method,
        )
    except NotComputable as error:
        example = examples[error.document]
        raise error.named(example.id, example.subtasks[error.prompt].id) from error
    seconds = time.perf_counter() - started
    answers = [[Answer(one.text or "", one.score) for one in row] for row in generated]
    if predictions is not None:
        _keep_predictions(Path(predictions), examples, answers)
    run = Run(
        method=method,
        device=_device(),
        seconds=seconds,
        seconds_per_document=statistics.median(per_document),
        truncation=tokenized.truncation_report(),
        targets=targets,
        answers_cut=sum(one.finish_reason == "length" for row in generated for one in row),
    )
    try:
        return scored(task, examples, answers, lengths=_lengths(tokenized, generated), run=run)
    except Exception as error:
        if predictions is not None:
            error.add_note(_not_lost(predictions))
        raise


def _keep_predictions(
    path: Path, examples: Sequence[Example], answers: Sequence[Sequence[Answer]]
) -> None:
    """Writes them to `path`, or else to a temporary directory that the error names."""
    try:
        _write_predictions(path, examples, answers)
    except UserError as error:
        try:
            directory = Path(tempfile.mkdtemp(prefix="pid_jax-"))
        except OSError:
            raise error from None
        try:
            _write_predictions(directory / path.name, examples, answers)
        except UserError:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            error.add_note(_not_lost(directory / path.name))
        raise


def _not_lost(predictions: str | Path) -> str:
    return (
        f"The answers are not lost: {predictions} has them, and `python -m pid_jax.evaluation` "
        "scores them; see its --help."
    )


def _check_any(examples: Sequence[Example], task: Task) -> None:
    if not examples:
        raise UserError(f"task {task.name}: no examples to evaluate")


def _allowed(examples: Sequence[Example]) -> list[list[tuple[str, ...] | None]] | None:
    """The closed lists of answers, if any subtask has one."""
    lists = [[subtask.allowed for subtask in example.subtasks] for example in examples]
    return lists if any(one is not None for row in lists for one in row) else None


def _lengths(tokenized: TokenizedExamples, generated: Sequence[Sequence[Generation]]) -> Lengths:
    # An answer that was cut has no end token; any other has one, as targets have.
    longest = tokenized.limits.target_tokens
    predictions = [
        min(len(one.tokens) + (one.finish_reason != "length"), longest)
        for row in generated
        for one in row
    ]
    return Lengths(
        "tokens", {**tokenized.lengths_before_cutting(), "predictions": np.array(predictions)}
    )


def _device() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def write(directory: str | Path, evaluation: Evaluation, about: Mapping[str, str]) -> None:
    """Writes metrics.json, predictions.jsonl and report.html, each complete or not at all.

    `about` (task, split, checkpoint, ...) is added to metrics.json and report.html.
    """
    directory = Path(directory)
    _write(directory / METRICS, json_text({**about, **summary(evaluation)}, indent=2) + "\n")
    _write_predictions(directory / PREDICTIONS, evaluation.examples, evaluation.answers)
    _write(directory / REPORT, html_report.page(evaluation, about))


def _write_predictions(
    path: Path, examples: Sequence[Example], answers: Sequence[Sequence[Answer]]
) -> None:
    lines = (json_text(_line(*pair)) + "\n" for pair in zip(examples, answers, strict=True))
    _write(path, "".join(lines))


def _write(path: Path, content: str) -> None:
    with replacing(path) as written:
        written.write_text(content, encoding="utf-8", newline="\n")


def _line(example: Example, answers: Sequence[Answer]) -> dict[str, Any]:
    subtasks: list[dict[str, Any]] = []
    for subtask, answer in zip(example.subtasks, answers, strict=True):
        asked = {"id": subtask.id, "prompt": subtask.prompt, "target": subtask.target}
        score = {} if answer.score is None else {"score": answer.score}
        subtasks.append({**asked, "prediction": answer.text, **score})
    return {"id": example.id, "document": example.document, "subtasks": subtasks}


def read_predictions(path: str | Path, examples: Sequence[Example]) -> list[list[Answer]]:
    """The answers to `examples` that a file in the layout of predictions.jsonl holds.

    Raises UserError, naming the line and the id, for a malformed line, for ids that `examples`
    do not have or that come twice, and for a missing prediction.
    """
    expected = {example.id: example for example in examples}
    found: dict[str, list[Answer]] = {}
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
            if identifier in found:
                raise UserError(f"{where}: a second line has the id {identifier!r}")
            found[identifier] = _answers(entry, expected[identifier], f"{where}, {identifier!r}")
    missing = [identifier for identifier in expected if identifier not in found]
    if missing:
        raise UserError(
            f"{path}: no predictions for {len(missing):,} of {len(expected):,} examples, the first "
            f"of them {missing[0]!r}: every example must have some"
        )
    return [found[identifier] for identifier in expected]


def _answers(entry: Mapping[str, Any], example: Example, where: str) -> list[Answer]:
    expected = {subtask.id for subtask in example.subtasks}
    found: dict[str, Answer] = {}
    for number, subtask in enumerate(field(entry, "subtasks", list, where), start=1):
        here = f"{where}, subtask {number}"
        identifier = identifier_of(subtask, "id", here)
        if identifier not in expected:
            raise UserError(f"{here}: the example has no subtask with the id {identifier!r}")
        if identifier in found:
            raise UserError(f"{here}: a second subtask has the id {identifier!r}")
        here = f"{here}, {identifier!r}"
        score = optional(subtask, "score", here)
        if not (score is None or type(score) in (int, float)):
            raise UserError(f'{here}: "score" must be a number, got {kind_of(score)}')
        if score is not None and not abs(score) <= sys.float_info.max:
            raise UserError(f'{here}: "score" must be a finite number, got {score}')
        found[identifier] = Answer(field(subtask, "prediction", str, here), score)
    for subtask in example.subtasks:
        if subtask.id not in found:
            raise UserError(f"{where}: no prediction for the subtask {subtask.id!r}")
    return [found[subtask.id] for subtask in example.subtasks]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    with user_errors():
        _score_file(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pid_jax.evaluation",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--predictions", required=True, metavar="FILE", type=Path, help="JSON lines to score"
    )
    parser.add_argument(
        "--task",
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(tasks.names())}, or your own",
    )
    parser.add_argument(
        "--path", metavar="PATH", help="the files as they were downloaded, if the task reads any"
    )
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    add_task_options(parser)
    parser.add_argument(
        "--limit", type=int, metavar="N", help="score only the first N documents (dialogue turns)"
    )
    parser.add_argument(
        "--output",
        metavar="DIRECTORY",
        type=Path,
        help=f"where to write {', '.join(FILES)} (default: only print the scores)",
    )
    return parser


def _score_file(options: argparse.Namespace) -> None:
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit={options.limit}: it must be at least 1")
    task = tasks.get(options.task, **task_options(options.option))
    examples = list(islice(task.examples(options.path, options.split), options.limit))
    _check_any(examples, task)
    answers = read_predictions(options.predictions, examples)
    if options.output is not None:
        check_writable(options.output)  # before the work, not after it
    result = scored(task, examples, answers)
    if options.output is not None:
        about = {"task": task.name, "split": options.split, "predictions": str(options.predictions)}
        write(options.output, result, about)
    print(f"{task.name}, {options.split}\n{table(result)}")
    if options.output is not None:
        print(f"Written to {options.output}: {', '.join(FILES)}")


if __name__ == "__main__":
    main()

"""A task's score over a checkpoint."""

import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.examples import Example
from pid_jax.data.tokenizing import Limits, TokenizedExamples
from pid_jax.distributed import exchange, service
from pid_jax.errors import UserError
from pid_jax.evaluation.predictions import write_predictions
from pid_jax.inference.model import PidModel
from pid_jax.inference.request import Method
from pid_jax.inference.results import Generation, NotComputable
from pid_jax.models.protocol import control_token_ids
from pid_jax.scoring import Answer, Evaluation, Lengths, Run, scored
from pid_jax.tasks import Task

log = logging.getLogger(__name__)


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
    processes: bool = False,
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    """Generates an answer to every subtask of `examples` and scores them with `task`.

    Documents, prompts and answers are cut at `limits`, as in training. `after_batch` is called
    with a batch's number of documents and its seconds. predictions: a file, in the layout of
    predictions.jsonl, to write before anything is scored. A metric that fails then loses no answer,
    nor does a full disk where the system's temporary directory has space. processes: divide the
    work among the processes of `jax.distributed`, which must all call this with the same arguments.
    All return the same scores, the first one writes the file. cancelled: called after each batch.
    If it returns True in any process, all raise `Cancelled`. Raises UserError where there is
    nothing to score or no tokenizer to read it with.
    """
    check_any(examples, task)
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
            processes=processes,
            cancelled=cancelled,
        )
        if processes:
            of_first = generated
            generated = exchange.of_first(lambda: of_first)
    except NotComputable as error:
        example = examples[error.document]
        raise error.named(example.id, example.subtasks[error.prompt].id) from error
    seconds = time.perf_counter() - started
    answers = [[Answer(one.text or "", one.score) for one in row] for row in generated]
    if predictions is not None and (not processes or service.is_first()):
        _save_predictions(Path(predictions), examples, answers)
    run = Run(
        method=method,
        device=_device(),
        seconds=seconds,
        seconds_per_document=statistics.median(per_document) if per_document else 0.0,
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


def _save_predictions(
    path: Path, examples: Sequence[Example], answers: Sequence[Sequence[Answer]]
) -> None:
    """Writes them to `path`, or else to a temporary directory that the error names."""
    try:
        write_predictions(path, examples, answers)
    except UserError as error:
        try:
            directory = Path(tempfile.mkdtemp(prefix="pid_jax-"))
        except OSError:
            raise error from None
        try:
            write_predictions(directory / path.name, examples, answers)
        except UserError:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            error.add_note(_not_lost(directory / path.name))
        raise


def _not_lost(predictions: str | Path) -> str:
    return (
        f"The answers are not lost: {predictions} has them, and `pid-jax eval` scores them with "
        f"--predictions={predictions} instead of --checkpoint."
    )


def check_any(examples: Sequence[Example], task: Task) -> None:
    """Raises UserError where there is nothing to score."""
    if not examples:
        raise UserError(f"task {task.name}: no examples to evaluate")


def _allowed(examples: Sequence[Example]) -> list[list[tuple[str, ...] | None]] | None:
    """The lists of allowed outputs, if any subtask has one."""
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

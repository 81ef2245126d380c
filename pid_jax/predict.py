"""Answers every prompt of a JSON-lines file: `python -m pid_jax.predict --help`."""

import argparse
import dataclasses
import functools
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
from tqdm import tqdm

from pid_jax.answering import Counts, Output, answer_lines
from pid_jax.atomic_file import ResumableFile, partial_path
from pid_jax.checkpoints import contents, huggingface
from pid_jax.command_line import add_fields, checkpoint_parser, user_errors
from pid_jax.data.examples import Example
from pid_jax.decoding.options import GenerationOptions
from pid_jax.decoding.report import DecodingReport
from pid_jax.errors import UserError
from pid_jax.inference.generation_defaults import GenerationDefaults, check_alone
from pid_jax.inference.model import PidModel
from pid_jax.inference.request import RequestReader
from pid_jax.inference.results import Generation, NotComputable
from pid_jax.tasks import jsonl, text_files

DESCRIPTION = """\
Answers every prompt of a JSON-lines file with a trained model.

Each input line is one document and what is asked of it:

  {"id": "d1", "document": "...", "subtasks": [{"id": "q1", "prompt": "..."}]}

The output holds the same lines in the same order; each subtask gains "prediction", the
generated text, "score", the natural logarithm of that text's probability, and "finish_reason",
"stop" for an answer that ended or "length" for one cut at --max-new-tokens; with
--num-return-sequences "alternatives", a list of such answers; with --logprobs=N "logprobs", for
each token {"token": id, "logprob": x, "top": [[id, x], ...]} with the N likeliest. Anything else
on a line stays as it is. A subtask may have "allowed": ["north", "south"]: its prediction is then
one of these texts, and "score" null where the model rules all of them out.
Files of any size are read and written piece by piece; gzip may have packed the input.

The output file appears only once it is complete. Until then the answers are in OUTPUT.partial:
if the command is stopped or killed, the same command goes on from there. It refuses to where
the documents answered so far, the model or the options that make the answers have changed.
"""

EXIT_STATUS = """\
exit status:
  0    every line was answered
  2    stopped by an error; what was answered until then is kept in OUTPUT.partial
  3    every good line was answered, and bad lines were left out (--on-error=skip)
  130  stopped by Ctrl-C; what was answered until then is kept
"""
LEFT_OUT, INTERRUPTED = 3, 130

SECONDS_BETWEEN_REPORTS = 5.0


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        with user_errors():
            counts = _predict_file(options)
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "stopped", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    if counts.bad_lines:
        raise SystemExit(LEFT_OUT)


def _parser() -> argparse.ArgumentParser:
    parser = checkpoint_parser("python -m pid_jax.predict", DESCRIPTION)
    parser.epilog = EXIT_STATUS
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        type=Path,
        help="JSON lines to read; - for standard input",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        type=Path,
        help="JSON lines to write; - for standard output, which nothing can resume",
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens of documents, prompts and answers, padding included, that are decoded "
        "together (default: 4096 on a CPU, 65536 elsewhere)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="documents decoded together at most (default: no limit but --batch-tokens)",
    )
    parser.add_argument(
        "--write-every",
        type=int,
        metavar="N",
        default=512,
        help="documents answered between two writes: more sort better into batches of similar "
        "length, fewer are answered again after a kill (default: 512)",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a line that cannot be read: stop (default), or report its number and leave it out",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="drop what a stopped run has answered and start afresh",
    )
    answers = parser.add_argument_group("how answers are chosen")
    answers.add_argument(
        "--method",
        choices=("pid", "pie"),
        help="prompt-in-decoder or prompt-in-encoder (default: as the run was trained, or pid)",
    )
    answers.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "auto"),
        default="float32",
        help="of parameters and activations: bfloat16 takes half the memory, and less time on GPU "
        "and TPU; auto is that of the checkpoint (default: float32)",
    )
    add_fields(answers, GenerationOptions, otherwise="the checkpoint's, or ")
    return parser


def _predict_file(options: argparse.Namespace) -> Counts:
    if options.output.suffix.lower() == ".gz":
        raise UserError(
            f"--output={options.output}: the output is written as plain text: leave .gz out"
        )
    if options.write_every < 1:
        raise UserError(f"--write-every must be at least 1, not {options.write_every}")
    for flag in ("batch-tokens", "batch-size"):
        value = getattr(options, flag.replace("-", "_"))
        if value is not None and value < 1:
            raise UserError(f"--{flag} must be at least 1, not {value}")
    given = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(GenerationOptions)
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        check_alone(name, value)
    from pid_jax.checkpoints import orbax  # slow to import, and --help should not wait for it

    generation = {**chosen, "method": options.method or orbax.trained_method(options.checkpoint)}
    counts, report, started = Counts(), DecodingReport(), time.perf_counter()

    with (
        _opened(options.input) as (file, stream, name),
        _Progress(counts, file, name) as progress,
    ):

        def report_bad_line(error: UserError) -> None:
            counts.bad_lines += 1
            progress.print(f"left out: {error}")

        model = _Model(options, generation, progress, report)
        lines = jsonl.read_stream(
            stream,
            name,
            check=model.check,
            on_bad_line=report_bad_line if options.on_error == "skip" else None,
        )
        lines = _counted(lines, counts)
        # Mistakes in the first lines show before the checkpoint is looked at.
        first = list(itertools.islice(lines, options.write_every))
        with _output(options, generation, counts, model) as output:
            answer_lines(
                itertools.chain(first, lines),
                output,
                model,
                documents_at_once=options.write_every,
                counts=counts,
            )
    seconds = time.perf_counter() - started
    before = f" ({counts.documents_before:,} of them before)" if counts.documents_before else ""
    left_out = f", {counts.bad_lines:,} bad lines left out" if counts.bad_lines else ""
    print(
        f"{options.output}: {counts.documents:,} documents{before}, {counts.prompts:,} prompts"
        f"{left_out}, {seconds:.1f} s ({generation['method']})"
        + (f"\n{report}" if report.batches else ""),
        file=sys.stderr if _is_standard(options.output) else sys.stdout,
    )
    return counts


def _counted(lines: Iterator[tuple[str, Example]], counts: Counts) -> Iterator[tuple[str, Example]]:
    for line in lines:
        counts.read += 1
        yield line


def _is_standard(path: Path) -> bool:
    return str(path) == "-"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO, str]]:
    """The input as it is, the text in it, and what to call it."""
    if _is_standard(path):
        name = "standard input"
        yield sys.stdin.buffer, text_files.text_of(sys.stdin.buffer, name), name
    else:
        with text_files.opened(path) as (file, text):
            yield file, text, str(path)


@contextmanager
def _output(
    options: argparse.Namespace, generation: Mapping[str, Any], counts: Counts, model: "_Model"
) -> Iterator[Output]:
    """The output, complete when the block ends, or what an earlier run has of it."""
    if _is_standard(options.output):
        yield _StandardOutput()
        return
    from pid_jax.checkpoints import identity  # imports Orbax

    _refuse_to_lose(options)
    checkpoint = model.digest = identity.digest(options.checkpoint)
    settings = {**generation, "dtype": options.dtype, "checkpoint": checkpoint}
    with ResumableFile(options.output) as output:
        earlier = output.settings
        if options.restart or earlier is None:
            output.restart(settings)
        elif earlier != settings:
            raise UserError(
                f"{output.partial} has answers of a run that was stopped and "
                f"{_difference(earlier, settings)}. Give the command of then to complete them, "
                "name another output, or drop them with --restart"
            )
        try:
            yield output
        except (UserError, KeyboardInterrupt) as error:
            if counts.documents == counts.documents_before:
                raise
            kept = (
                f"{counts.documents:,} documents are answered, in {output.partial}: the same "
                "command goes on from there"
            )
            raise type(error)(f"{error}\n{kept}" if str(error) else kept) from error
        output.finish()


def _refuse_to_lose(options: argparse.Namespace) -> None:
    """Raises UserError where the input would be written to, or replaced by a part of it."""

    def is_input(path: Path) -> bool:
        return path.exists() and options.input.exists() and path.samefile(options.input)

    if is_input(partial_path(options.output)):
        raise UserError(f"{options.input} is where --output={options.output} is being written")
    if options.on_error == "skip" and is_input(options.output):
        raise UserError(
            f"{options.output} is the input, and --on-error=skip would leave its bad lines out: "
            "name another output"
        )


def _difference(earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    if not earlier:
        return "does not say how it made them"
    different = [
        f"{name}={earlier.get(name, '(default)')}, not {settings.get(name, '(default)')}"
        for name in sorted(earlier.keys() | settings.keys())
        if name != "checkpoint" and earlier.get(name) != settings.get(name)
    ]
    if earlier.get("checkpoint") != settings["checkpoint"]:
        different.append("another checkpoint")
    return "had " + " and ".join(different)


class _StandardOutput:
    """Standard output, in which nothing can be resumed."""

    def next_line(self) -> None:
        return None

    def append(self, lines: bytes) -> None:
        try:
            sys.stdout.buffer.write(lines)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Python would try once more at its exit, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise UserError("standard output was closed before all was written") from None
        except OSError as error:
            raise UserError(f"cannot write standard output: {error.strerror}") from error


class _Model:
    """Answers examples with the checkpoint, which is loaded when it is first needed."""

    def __init__(
        self,
        options: argparse.Namespace,
        generation: Mapping[str, Any],
        progress: "_Progress",
        report: DecodingReport,
    ) -> None:
        self._options = options
        self._generation = generation
        self._admissible: set[tuple[str, ...]] = set()
        """Lists that were checked already: the same are asked of document after document."""
        self._progress = progress
        self._report = report
        self.digest: str | None = None
        """Of the checkpoint that the answers are said to be of."""

    @functools.cached_property
    def _model(self) -> PidModel:
        model = PidModel.from_pretrained(self._options.checkpoint, dtype=self._options.dtype)
        # What a hub id names is fetched once, and stays as it was.
        if self.digest is not None and Path(self._options.checkpoint).is_dir():
            from pid_jax.checkpoints import identity  # imports Orbax

            if identity.digest(self._options.checkpoint) != self.digest:
                run = contents.is_run(self._options.checkpoint)
                what = "has got a better checkpoint" if run else "was replaced"
                raise UserError(
                    f"{self._options.checkpoint} {what} since this command began: give it again"
                )
        if model.tokenizer is None:
            raise UserError(
                f"{self._options.checkpoint} has no tokenizer, so it cannot read text: put "
                "tokenizer.json or spiece.model there, or use PidModel.generate with token ids"
            )
        # Options that do not fit are refused here, before any document can be blamed for them.
        model.generate([], [], **self._batches, **self._generation)
        own = {k: v for k, v in model.generation_defaults.items() if k not in self._generation}
        if own:
            listed = ", ".join(f"{name}={value}" for name, value in own.items())
            self._progress.print(f"defaults of {self._options.checkpoint}: {listed}")
        return model

    @property
    def _batches(self) -> dict[str, Any]:
        return {"batch_tokens": self._options.batch_tokens, "batch_size": self._options.batch_size}

    def check(self, example: Example, where: str) -> None:
        """Raises UserError for what the model cannot read, or answer within its limits."""
        if self._reading is None:
            return
        inputs, options = self._reading
        constrained = any(subtask.allowed is not None for subtask in example.subtasks)
        if inputs.any_text_fits and not constrained:
            return
        prompts = [subtask.prompt for subtask in example.subtasks]
        try:
            method = self._generation["method"]
            # A length of the checkpoint is cut to what prompts leave.
            inputs.check(example.document, prompts, method, options.limited_to(1).max_new_tokens)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        for number, subtask in enumerate(example.subtasks, start=1):
            if subtask.allowed is not None and subtask.allowed not in self._admissible:
                inputs.allowed(
                    subtask.allowed,
                    f'{where}, subtask {number}: "allowed"',
                    min_new_tokens=options.min_tokens_of_allowed(),
                    max_new_tokens=options.max_new_tokens,
                )
                self._admissible.add(subtask.allowed)

    @functools.cached_property
    def _reading(self) -> tuple[RequestReader, GenerationOptions] | None:
        """What reads texts, without the weights, and the options for lists of allowed texts; None
        where the checkpoint is not as it should be, which loading it will say."""
        path = Path(self._options.checkpoint)
        try:
            run = contents.is_run(path)
            directory = path / "model" if run else huggingface.find(self._options.checkpoint)
            config = huggingface.read_config(directory)
            tokenizer = huggingface.load_tokenizer(directory)
            own = GenerationDefaults(huggingface.read_generation(directory), config, quiet=True)
        except UserError:
            return None
        if tokenizer is None:
            return None
        inputs = RequestReader(config, tokenizer)
        given = {name: value for name, value in self._generation.items() if name != "method"}
        with user_errors():  # ends the command: it is no fault of a line
            options = own.options_with(given, constrained=True)
            inputs.check_new_tokens(options.max_new_tokens)
        return inputs, options

    def __call__(self, examples: Sequence[Example]) -> list[list[Generation]]:
        model = self._model
        where = f"documents {examples[0].id!r} to {examples[-1].id!r}"
        allowed = [[subtask.allowed for subtask in example.subtasks] for example in examples]
        constrained = any(texts is not None for row in allowed for texts in row)
        try:
            return model.generate(
                [example.document for example in examples],
                [[subtask.prompt for subtask in example.subtasks] for example in examples],
                allowed=allowed if constrained else None,
                progress=False,
                after_batch=self._progress.after_batch,
                report=self._report,
                **self._batches,
                **self._generation,
            )
        except NotComputable as error:
            example = examples[error.document]
            raise error.named(example.id, example.subtasks[error.prompt].id) from error
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                if len(examples) > 1:  # one of them may be too long for any batch: which?
                    return [self([example])[0] for example in examples]
                raise UserError(
                    f"document {examples[0].id!r}: the memory does not suffice for it alone: "
                    "shorten it, ask it fewer prompts, or leave it out"
                ) from error
            raise


class _Progress:
    """Says on standard error how far it is: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, counts: Counts, stream: BinaryIO, name: str) -> None:
        self._counts = counts
        self._stream = stream
        self._name = name
        self._documents = 0.0
        self._seconds = 0.0
        self._reported = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def print(self, text: str) -> None:
        """Prints a line without spoiling the bar."""
        tqdm.write(text, file=sys.stderr)

    def after_batch(self, documents: float, seconds: float) -> None:
        """Counts a batch."""
        self._documents += documents
        self._seconds += seconds
        # The window in which an earlier run was stopped is answered anew, as a whole.
        done = min(round(self._counts.documents_before + self._documents), self._counts.read)
        if sys.stderr.isatty():
            self._show_bar(done)
        elif time.monotonic() - self._reported >= SECONDS_BETWEEN_REPORTS:
            self._reported = time.monotonic()
            share = self._share_read()
            print(
                f"{done:,} documents, {self._documents / self._seconds:.1f} a second"
                + ("" if share is None else f", {share:.0%} of {self._name} read"),
                file=sys.stderr,
                flush=True,
            )

    def _show_bar(self, done: int) -> None:
        if self._bar is None:
            self._bar = tqdm(unit=" documents", initial=self._counts.documents_before)
        # As many documents as there would be if the rest of the file were like what is read.
        share = self._share_read()
        self._bar.total = None if share is None else round(self._counts.read / share)
        self._bar.update(done - self._bar.n)

    def _share_read(self) -> float | None:
        """None where the input is no regular file."""
        try:
            return self._stream.tell() / os.fstat(self._stream.fileno()).st_size
        except (OSError, ZeroDivisionError):
            return None


if __name__ == "__main__":
    main()

"""A prediction run from its input to its output."""

import itertools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from pid_jax.data.examples import Example
from pid_jax.distributed import service
from pid_jax.errors import UserError
from pid_jax.prediction.answering import Counts, Output, answer_lines
from pid_jax.prediction.checkpoint import Checkpoint
from pid_jax.prediction.progress import PredictionProgress
from pid_jax.prediction.reading import line_check
from pid_jax.prediction.settings import STANDARD, Settings
from pid_jax.prediction.streams import NoOutput, StandardOutput, opened_input, opened_output
from pid_jax.prediction.summary import Summary
from pid_jax.tasks import jsonl


def predict_file(settings: Settings) -> Summary:
    """Answers every prompt of `settings.input` and writes the answered lines to the output.

    The same call goes on with what a stopped one has answered. Raises UserError for what the user
    can mend, and KeyboardInterrupt after Ctrl-C; both say what is answered.
    """
    if service.count() > 1 and settings.input == STANDARD:
        raise UserError("--input=-: several processes need a file that all of them can read")
    documents_at_once = settings.write_every * service.count()
    counts, started = Counts(), time.perf_counter()
    with (
        opened_input(settings.input) as (file, stream, name),
        PredictionProgress(counts, file, name, shown=service.is_first()) as progress,
    ):

        def report_bad_line(error: UserError) -> None:
            counts.bad_lines += 1
            progress.print(f"left out: {error}")

        checkpoint = Checkpoint(settings, progress)
        lines = jsonl.read_stream(
            stream,
            name,
            check=line_check(settings),
            on_bad_line=report_bad_line if settings.skip_bad_lines else None,
        )
        lines = _counted(lines, counts)
        # Mistakes in the first lines show before the checkpoint is read as a whole.
        first = list(itertools.islice(lines, documents_at_once))
        with _output(settings, counts, checkpoint) as output:
            answer_lines(
                itertools.chain(first, lines),
                output,
                checkpoint,
                documents_at_once=documents_at_once,
                counts=counts,
            )
    seconds = time.perf_counter() - started
    return Summary(settings.output, counts, checkpoint.report, seconds, settings.method)


def _counted(lines: Iterator[tuple[str, Example]], counts: Counts) -> Iterator[tuple[str, Example]]:
    for line in lines:
        counts.read += 1
        yield line


def _output(
    settings: Settings, counts: Counts, checkpoint: Checkpoint
) -> AbstractContextManager[Output]:
    if not service.is_first():
        return nullcontext(NoOutput())
    if settings.output == STANDARD:
        return nullcontext(StandardOutput())
    from pid_jax.checkpoints import identity  # imports Orbax

    checkpoint.digest = identity.digest(settings.checkpoint)
    return opened_output(settings, counts, checkpoint.digest)

"""The progress of a prediction run, on standard error."""

import os
import sys
import time
from typing import BinaryIO

from tqdm import tqdm

from pid_jax.prediction.answering import Counts

SECONDS_BETWEEN_REPORTS = 5.0


class PredictionProgress:
    """Shows a bar on a terminal, and prints a line every few seconds elsewhere."""

    def __init__(self, counts: Counts, stream: BinaryIO, name: str, *, shown: bool = True) -> None:
        """shown: False shows nothing."""
        self._shown = shown
        self._counts = counts
        self._stream = stream
        self._name = name
        self._documents = 0.0
        self._seconds = 0.0
        self._reported = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> "PredictionProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def print(self, text: str) -> None:
        """Prints a line without spoiling the bar."""
        if self._shown:
            tqdm.write(text, file=sys.stderr)

    def after_batch(self, documents: float, seconds: float) -> None:
        """Counts a batch."""
        if not self._shown:
            return
        self._documents += documents
        self._seconds += seconds
        # The window in which an earlier run was stopped is answered again, as a whole.
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

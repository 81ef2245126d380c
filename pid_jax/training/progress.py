"""Training speed and estimated remaining time."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta


class Progress:
    """Measures documents and tokens per second, and formats the progress line.

    Rates are means since the last line. They exclude the time in `paused` blocks (compilation,
    evaluation).
    """

    def __init__(
        self, step: int, last_step: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._last_step = last_step
        self._clock = clock
        self._start(step)

    def _start(self, step: int) -> None:
        self._since = self._clock()
        self._first_step = step
        self._documents = 0
        self._tokens = 0

    def add(self, *, documents: int, tokens: int) -> None:
        """Counts one finished step."""
        self._documents += documents
        self._tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time in the block."""
        started = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - started

    def rates(self, step: int) -> dict[str, float]:
        """Means since the last call: documents/s, tokens/s and remaining seconds."""
        seconds = max(self._clock() - self._since, 1e-9)
        steps = max(step - self._first_step, 1)
        rates = {
            "documents_per_second": self._documents / seconds,
            "tokens_per_second": self._tokens / seconds,
            "seconds_left": seconds / steps * (self._last_step - step),
        }
        self._start(step)
        return rates

    def line(self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> str:
        """One line for the terminal."""
        left = timedelta(seconds=round(rates["seconds_left"]))
        return (
            f"step {step}/{self._last_step}  loss {metrics['loss']:.4f}  "
            f"exact match {metrics['exact_match']:.3f}  "
            f"{rates['documents_per_second']:.1f} documents/s  "
            f"{rates['tokens_per_second']:,.0f} tokens/s  {left} left"
        )

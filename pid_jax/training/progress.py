"""Training speed and where its time goes, padding, and estimated remaining time."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, NamedTuple

from pid_jax.data.batching import Batch
from pid_jax.data.packing import PackedBatch

Waiting = Literal["input", "device"]


class TokenCounts(NamedTuple):
    """Tokens of a batch, and the positions of its arrays: tokens and padding."""

    document_tokens: float
    document_positions: float
    decoder_tokens: float
    """Of subtasks with a target: start token, prompt, and target without its last token."""
    decoder_positions: float

    @classmethod
    def of(cls, batch: Batch | PackedBatch, share: float = 1.0) -> "TokenCounts":
        """share: that of the batch's rows among those of the whole batch, for which this counts."""
        real, shape = batch.real_tokens, batch.shape
        documents = shape.documents * shape.document_tokens
        counts = real.documents, documents, real.decoder, shape.decoder_tokens
        return cls(*(count / share for count in counts))

    @property
    def tokens(self) -> float:
        """All tokens without padding."""
        return self.document_tokens + self.decoder_tokens


class Progress:
    """Measures speed and formats the progress line.

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
        self._model_flops = 0.0
        self._counts: dict[str, float] = defaultdict(float)
        self._waited: dict[str, float] = defaultdict(float)

    def add(self, *, documents: int, counts: TokenCounts, model_flops: float = 0.0) -> None:
        """Counts one finished step."""
        self._documents += documents
        self._model_flops += model_flops
        for name, count in counts._asdict().items():
            self._counts[name] += count

    @contextmanager
    def waiting(self, kind: Waiting) -> Iterator[None]:
        """Counts the time in the block as waiting: for the next batch, or for the device."""
        started = self._clock()
        try:
            yield
        finally:
            self._waited[kind] += self._clock() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time in the block."""
        started = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - started

    def rates(
        self, step: int, utilisation: Callable[[float, float], float | None] = lambda *_: None
    ) -> dict[str, float]:
        """Means since the last call.

        "documents_per_second", "tokens_per_second" (without padding), "seconds_left".
        "step_seconds" is the sum of "input_seconds" (the loop waits for the batch),
        "device_seconds" (it waits for the devices) and "host_seconds". "document_tokens" and
        "decoder_tokens" are those of a step without padding, "document_padding" and
        "decoder_padding" the shares of padding, from 0 to 1. "mfu" is the result of `utilisation`
        for FLOPs and seconds, if it has one.
        """
        seconds = max(self._clock() - self._since, 1e-9)
        steps = max(step - self._first_step, 1)
        counts, waited = self._counts, self._waited
        rates = {
            "documents_per_second": self._documents / seconds,
            "tokens_per_second": (counts["document_tokens"] + counts["decoder_tokens"]) / seconds,
            "seconds_left": seconds / steps * (self._last_step - step),
            "step_seconds": seconds / steps,
            "input_seconds": waited["input"] / steps,
            "device_seconds": waited["device"] / steps,
            "host_seconds": max(seconds - waited["input"] - waited["device"], 0.0) / steps,
        }
        for kind in ("document", "decoder"):
            tokens, positions = counts[f"{kind}_tokens"], counts[f"{kind}_positions"]
            rates[f"{kind}_tokens"] = tokens / steps
            rates[f"{kind}_padding"] = 1 - tokens / max(positions, 1)
        mfu = utilisation(self._model_flops, seconds)
        if mfu is not None:
            rates["mfu"] = mfu
        self._start(step)
        return rates

    def line(self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> str:
        """One line for the terminal."""
        left = timedelta(seconds=round(rates["seconds_left"]))
        mfu = f"MFU {rates['mfu']:.1%}  " if "mfu" in rates else ""
        shares = "  ".join(
            f"{kind} {rates[f'{kind}_seconds'] / rates['step_seconds']:.0%}"
            for kind in ("device", "input", "host")
        )
        return (
            f"step {step}/{self._last_step}  loss {metrics['loss']:.4f}  "
            f"exact match {metrics['exact_match']:.3f}  "
            f"{rates['documents_per_second']:.1f} documents/s  "
            f"{rates['tokens_per_second']:,.0f} tokens/s  {mfu}({shares})  {left} left"
        )

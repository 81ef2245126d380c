"""Ahead-of-time compilation: once for each batch shape, with a line in the log for each."""

import logging
import time
from collections.abc import Callable
from typing import Any

from pid_jax.data.batching import Batch

log = logging.getLogger(__name__)


class CompiledByShape:
    """A jitted function of (state, batch), compiled once for each batch shape."""

    def __init__(self, name: str, jitted: Any) -> None:
        """`name` is for the log. `jitted` comes from `jax.jit`, with its shardings."""
        self._name = name
        self._jitted = jitted
        self._compiled: dict[tuple[tuple[int, ...], ...], Callable[..., Any]] = {}

    def for_batch(self, state: Any, batch: Batch) -> Callable[..., Any]:
        """The program for a batch of this shape."""
        shapes = tuple(array.shape for array in batch)
        if shapes not in self._compiled:
            started = time.perf_counter()
            self._compiled[shapes] = self._jitted.lower(state, batch).compile()
            log.info(
                "compiled the %s for %s in %.1f s (shape %d)",
                self._name,
                describe(batch),
                time.perf_counter() - started,
                len(self._compiled),
            )
        return self._compiled[shapes]

    def is_new(self, batch: Batch) -> bool:
        """Whether `for_batch` would have to compile."""
        return tuple(array.shape for array in batch) not in self._compiled


def describe(batch: Batch) -> str:
    """The sizes of a batch, for people."""
    documents, document_tokens = batch.documents.shape
    _, prompts, prompt_tokens = batch.prompts.shape
    return (
        f"{documents} documents of {document_tokens} tokens, {prompts} prompts of {prompt_tokens}, "
        f"targets of {batch.targets.shape[-1]}"
    )

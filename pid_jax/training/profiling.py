"""A profile of chosen steps, in `<workdir>/profile`, for TensorBoard's profiler or Perfetto."""

import re
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import jax

from pid_jax.distributed import service
from pid_jax.errors import UserError

DIRECTORY = "profile"
_KEY = "config.train.profile_steps"


def steps(text: str) -> range:
    """The steps that "10:13" means: 10, 11 and 12. Raises UserError for another form."""
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    chosen = range(int(match[1]), int(match[2])) if match else range(0)
    if not chosen or chosen.start < 1:
        raise UserError(
            f'{_KEY} is {text!r}: write FIRST:END with steps from 1, such as "10:13" for steps 10, '
            "11 and 12"
        )
    return chosen


class StepProfiler:
    """Profiles the chosen steps of a run, and no other work. Only the first process does."""

    def __init__(self, workdir: Path, chosen: range) -> None:
        self._directory = workdir / DIRECTORY
        self._chosen = chosen if service.is_first() else range(0)
        self._running = False

    def step(self, number: int, state: Any) -> AbstractContextManager[None]:
        """A context for the start of a step. The first one waits for the state before it."""
        if number not in self._chosen:
            return nullcontext()
        if not self._running:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def started(self, number: int, results: Any) -> None:
        """Ends the profile after the last step, when its results are computed."""
        if self._running and number + 1 not in self._chosen:
            jax.block_until_ready(results)
            self.stop()

    def stop(self) -> None:
        """Ends the profile, before other work than steps. The next chosen step starts another."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An error of the profiler must not hide that of the run.
        with suppress(Exception) if kind is not None else nullcontext():
            self.stop()

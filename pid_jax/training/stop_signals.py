"""SIGTERM and Ctrl-C as a request to stop at the next step, not as an exception in the middle."""

import os
import signal
import sys
from types import FrameType
from typing import Self


class Interrupted(Exception):
    """A run stopped because a signal asked for it, after saving."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """What a shell shows for a process that ended by this signal."""
        return 128 + self.signal_number


class StopSignals:
    """While entered, the first SIGTERM or SIGINT is only noted; then a SIGINT ends the process."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        return self.received is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            # At once: an ordinary exit would wait for the checkpoint that is being written. What
            # is half-written has a temporary name and is removed by the next run.
            os.write(sys.stderr.fileno(), b"\nstopped at once; the last checkpoint stands\n")
            os._exit(128 + number)
        if self.received is None:
            name = signal.Signals(number).name
            again = "; Ctrl-C (again) stops at once"
            message = f"\n{name}: finishing this step and saving{again}\n"
            os.write(sys.stderr.fileno(), message.encode())
            self.received = number

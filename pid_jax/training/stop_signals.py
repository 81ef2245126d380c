"""SIGTERM and Ctrl-C as requests to stop after the current step."""

import os
import signal
import sys
from types import FrameType
from typing import Self


class Interrupted(Exception):
    """A run stopped because of a signal, after saving."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """The exit status of a process that this signal ends, as shells report it."""
        return 128 + self.signal_number


class StopSignals:
    """A context in which the first SIGTERM or SIGINT is recorded and a later SIGINT exits."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether the run has to stop."""
        return self.agreed is not None

    @property
    def agreed(self) -> int | None:
        """The signal for which the run stops."""
        return self.received

    def agree(self) -> None:
        """Makes a signal that any process has received that of all. All must call it."""

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            # A regular exit would wait for the checkpoint that is being written. The incomplete
            # checkpoint has a temporary name, and the next run deletes it.
            os.write(sys.stderr.fileno(), b"\nstopped at once; the last checkpoint is intact\n")
            os._exit(128 + number)
        if self.received is None:
            name = signal.Signals(number).name
            again = "; Ctrl-C (again) stops at once"
            message = f"\n{name}: finishing this step and saving{again}\n"
            os.write(sys.stderr.fileno(), message.encode())
            self.received = number

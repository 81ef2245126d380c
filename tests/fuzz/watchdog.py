"""A call that does not return is a failure, not a wait."""

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Hang(Exception):
    """The call took longer than it may."""


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raises `Hang` in the block after so many seconds.

    That reaches whatever comes back to Python. Where a compiled program itself never ends, the
    process prints all of its stacks and exits after another 60 seconds.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no result after {seconds} s")

    # A process may be told to write its standard error elsewhere, as pytest does.
    faulthandler.dump_traceback_later(seconds + 60, exit=True, file=sys.__stderr__)
    alarmed = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, stop) if alarmed else None
    if alarmed:
        signal.alarm(seconds)
    try:
        yield
    finally:
        if alarmed:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()

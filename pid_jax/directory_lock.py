"""Locks on directories: exclusive for writers, shared for readers.

The locks are `flock` locks on the directory itself. They end with the process and leave no file.
On a file system without locks they have no effect.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pid_jax.errors import UserError

if sys.platform != "win32":
    import fcntl


_SECONDS_BETWEEN_TRIALS = 0.2


@contextmanager
def writing(directory: Path, why: str = "another process is writing there") -> Iterator[bool]:
    """Excludes all other processes that call `writing` or `reading`.

    Yields False if the file system has no locks. Raises UserError with the message `why` if
    another process has a lock, and OSError if the directory cannot be opened.
    """
    with _locked(directory, exclusively=True) as locked:
        if locked is None:
            raise UserError(f"{directory}: {why}")
        yield locked


@contextmanager
def waiting(directory: Path, report: Callable[[], None]) -> Iterator[bool]:
    """As `writing`, but waits for other processes to end. report: called once before a wait."""
    reported = False
    while True:
        with _locked(directory, exclusively=True) as locked:
            if locked is not None:
                yield locked
                return
        if not reported:
            report()
            reported = True
        time.sleep(_SECONDS_BETWEEN_TRIALS)


@contextmanager
def unread(directory: Path) -> Iterator[bool]:
    """Excludes readers and writers. Yields False if there is one."""
    with _locked(directory, exclusively=True) as locked:
        yield locked is not None


@contextmanager
def reading(directory: Path) -> Iterator[bool]:
    """Excludes writers, not readers. Yields False if there is a writer or no directory."""
    with ExitStack() as stack:
        try:
            locked = stack.enter_context(_locked(directory, exclusively=False))
        except FileNotFoundError:
            locked = None
        yield locked is not None


@contextmanager
def _locked(directory: Path, *, exclusively: bool) -> Iterator[bool | None]:
    """Yields None if another process has the lock or moved the directory, False without locks."""
    if sys.platform == "win32":
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        kind = fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH
        locked: bool | None
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            locked = None
        except OSError:
            locked = False
        if locked and not _is_at(descriptor, directory):
            locked = None
        yield locked
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), directory.stat())
    except FileNotFoundError:
        return False

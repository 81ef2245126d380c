"""Keeping other processes out of a directory, or in it, while one writes or reads it.

The locks are `flock`'s, on the directory itself: they end with the process, whatever ends it, and
leave no file behind. Where the file system has none, nobody is kept out.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pid_jax.errors import UserError

if sys.platform != "win32":
    import fcntl


@contextmanager
def writing(directory: Path, why: str = "another process is writing there") -> Iterator[bool]:
    """Keeps every other process out that asks for this or for `reading`.

    False where the file system has no locks. Raises UserError, saying `why`, while another process
    holds the directory, and OSError where it cannot be opened.
    """
    with _locked(directory, exclusively=True) as locked:
        if locked is None:
            raise UserError(f"{directory}: {why}")
        yield locked


@contextmanager
def unread(directory: Path) -> Iterator[bool]:
    """Keeps readers out; False where there is one, or a writer."""
    with _locked(directory, exclusively=True) as locked:
        yield locked is not None


@contextmanager
def reading(directory: Path) -> Iterator[bool]:
    """Keeps writers out, not readers; False where there is a writer, or no directory."""
    with ExitStack() as stack:
        try:
            locked = stack.enter_context(_locked(directory, exclusively=False))
        except FileNotFoundError:
            locked = None
        yield locked is not None


@contextmanager
def _locked(directory: Path, *, exclusively: bool) -> Iterator[bool | None]:
    """None where others have it, or it has been moved; False where there are no locks."""
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

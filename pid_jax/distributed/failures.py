"""How the failure of one process ends all, with the sentence of that process.

A process that fails stores its message in the coordination service. A thread of every other process
waits for it. The main thread raises it at its next exchange of messages. If the main thread does
not end by itself, because it waits for the failed process in a collective operation, the waiting
thread prints the message and ends the process.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from pid_jax.distributed import service

GRACE = 5.0
"""Seconds in which the main thread of another process can end by itself."""
_KEY = "pid_jax/failure"
_LEFT = "pid_jax/left"
_POLL_SECONDS = 60


class Failure(NamedTuple):
    """Why a process ended before the others."""

    process: int
    message: str
    status: int
    """Its exit status, which the others take over."""

    def __str__(self) -> str:
        return f"{service.name(self.process)} stopped: {self.message}"


class OtherProcessFailed(Exception):
    """Raised in a process because another one has failed."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Watch:
    """Waits in the background for the failure of another process."""

    def __init__(self, exit_process: Callable[[int], None] = os._exit) -> None:
        """exit_process: ends this process with a status."""
        self._exit_process = exit_process
        self._client = service.client()
        self._failure: Failure | None = None
        self._seen = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="other-processes", daemon=True).start()

    def failure(self, seconds: float = 0.0) -> Failure | None:
        """The failure of another process, if one is known within so many seconds."""
        self._seen.wait(seconds)
        return self._failure

    def close(self) -> None:
        """Ends no process from now on."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                text = self._client.blocking_key_value_get(_KEY, _POLL_SECONDS * 1000)
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                return  # the service has ended: JAX ends this process
            failure = Failure(**json.loads(text))
            if failure.process == service.index():
                return
            self._failure = failure
            self._seen.set()
            if not self._closed.wait(GRACE):
                print(f"error: {failure}", file=sys.stderr, flush=True)
                leave(failure.status, self._exit_process)
            return


_WATCH: Watch | None = None


def watch() -> None:
    """Starts to watch the other processes, which may end this process."""
    global _WATCH
    _WATCH = Watch()


def stop_watching() -> None:
    """Ends what `watch` started."""
    global _WATCH
    if _WATCH is not None:
        _WATCH.close()
        _WATCH = None


def is_watching() -> bool:
    """Whether this process ends with the others."""
    return _WATCH is not None


def report(message: str, status: int) -> None:
    """Tells the other processes that this one has failed. The first report of all counts."""
    failure = Failure(service.index(), message, status)
    with contextlib.suppress(Exception):  # another process was first, or the service has ended
        service.client().key_value_set(_KEY, json.dumps(failure._asdict()))


def raise_failure(seconds: float = 0.0) -> None:
    """Raises OtherProcessFailed if another process has failed, or does within so many seconds."""
    failure = None if _WATCH is None else _WATCH.failure(seconds)
    if failure is not None:
        raise OtherProcessFailed(str(failure), failure.status)


def leave(status: int, exit_process: Callable[[int], None] = os._exit) -> None:
    """Ends this process after a failure, without waiting for the others in JAX's shutdown.

    The first process, which has the coordination service, ends last. It waits for the others for
    twice the grace period at most.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    with contextlib.suppress(Exception):  # of a service that has ended
        if not service.is_first():
            service.client().key_value_set(f"{_LEFT}/{service.index()}", "")
        else:
            deadline = time.monotonic() + 2 * GRACE
            others = service.count() - 1
            while time.monotonic() < deadline:
                if len(service.client().key_value_dir_get(f"{_LEFT}/")) >= others:
                    break
                time.sleep(0.05)
    exit_process(status)

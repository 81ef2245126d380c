"""Messages between the processes of a run.

They go through JAX's coordination service and need no devices. Every process must call these
functions in the same order. With a single process they cost nothing. A function that waits for
another process raises `OtherProcessFailed` when that process fails.
"""

import itertools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from pid_jax.distributed import failures, service

T = TypeVar("T")

_NUMBERS = itertools.count()
_PART = 16 * 2**20
"""Bytes of one message. Longer values are sent in parts."""
_POLL_MILLISECONDS = 500


def of_first(function: Callable[[], T]) -> T:
    """The result of a function, which only the first process calls, in all processes."""
    if service.count() == 1:
        return function()
    key = f"pid_jax/of_first/{next(_NUMBERS)}"
    if service.is_first():
        value = function()
        _set(key, value)
        return value
    return _get(key)


def gathered(value: T) -> list[T] | None:
    """The values of all processes, in their order, in the first process. None in the others."""
    if service.count() == 1:
        return [value]
    key = f"pid_jax/gathered/{next(_NUMBERS)}"
    if not service.is_first():
        _set(f"{key}/{service.index()}", value)
        return None
    values = [value]
    for process in range(1, service.count()):
        of_process = f"{key}/{process}"
        values.append(_get(of_process))
        service.client().key_value_delete(of_process)
    return values


def any_of(value: bool) -> bool:
    """Whether the value of any process is True."""
    values = gathered(value)
    return of_first(lambda: any(values or ()))


class Notice:
    """A sign that any process gives and all can see, without waiting for each other.

    Every process must create its notices in the same order.
    """

    def __init__(self) -> None:
        self._key = f"pid_jax/notice/{next(_NUMBERS)}"
        self._given = False

    def give(self) -> None:
        """Gives the sign, once."""
        if not self._given and service.count() > 1:
            service.client().key_value_set(f"{self._key}/{service.index()}", "")
        self._given = True

    @property
    def given(self) -> bool:
        """Whether a process has given the sign."""
        if not self._given and service.count() > 1:
            self._given = bool(service.client().key_value_dir_get(f"{self._key}/"))
        return self._given


def wait_for_all() -> None:
    """Returns when all processes have called it."""
    gathered(None)
    of_first(lambda: None)


def _set(key: str, value: Any) -> None:
    content = pickle.dumps(value)
    parts = range(0, len(content), _PART)
    client = service.client()
    client.key_value_set_bytes(f"{key}/parts", b"%d" % len(parts))
    for number, start in enumerate(parts):
        client.key_value_set_bytes(f"{key}/{number}", content[start : start + _PART])


def _get(key: str) -> Any:
    parts = int(_wait(f"{key}/parts"))
    return pickle.loads(b"".join(_wait(f"{key}/{number}") for number in range(parts)))


def _wait(key: str) -> bytes:
    while True:
        failures.raise_failure()
        try:
            content: bytes = service.client().blocking_key_value_get_bytes(key, _POLL_MILLISECONDS)
            return content
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise

"""Iterators in threads; what they are for is tested in tests/test_devices.py."""

import itertools
import threading
from collections.abc import Generator

import pytest

from pid_jax.decoding.engines import together


def test_what_all_yield_comes_as_it_comes() -> None:
    meeting = threading.Barrier(3, timeout=20)

    def numbers(first: int) -> Generator[int, None, None]:
        yield first
        meeting.wait()  # which none would reach if another had to end before
        yield first + 1

    found = list(together([numbers(0), numbers(10), numbers(20)]))
    assert sorted(found) == [0, 1, 10, 11, 20, 21]
    assert all(found.index(first) < found.index(first + 1) for first in (0, 10, 20))


def test_one_is_iterated_in_this_thread() -> None:
    def only() -> Generator[int, None, None]:
        yield threading.get_ident()

    assert list(together([only()])) == [threading.get_ident()]
    assert list(together([])) == []


@pytest.mark.parametrize("ended_by", ["error", "closing"])
def test_an_error_or_closing_ends_all(ended_by: str) -> None:
    before = threading.active_count()
    closed = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            yield from itertools.repeat(1)
        finally:
            closed.set()

    def failing() -> Generator[int, None, None]:
        yield 2
        if ended_by == "error":
            raise KeyError("broken")

    items = together([endless(), failing()])
    if ended_by == "error":
        with pytest.raises(KeyError, match="broken"):
            list(items)
    else:
        assert next(items) in (1, 2)
        items.close()
    assert threading.active_count() == before
    assert closed.is_set()

"""The progress bar of `generate`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(documents: int, wanted: bool | None) -> Iterator[Callable[[float], None]]:
    """A function that adds completed documents to a bar on standard error.

    wanted: None for a bar if standard error is a terminal.
    """
    if wanted is None:
        wanted = sys.stderr.isatty()
    if not wanted:
        yield lambda documents: None
        return
    from tqdm import tqdm

    with tqdm(total=documents, unit=" documents", bar_format=_BAR) as bar:
        yield lambda documents: bar.update(documents) and None


_BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} documents [{elapsed}<{remaining}, {rate_fmt}]"

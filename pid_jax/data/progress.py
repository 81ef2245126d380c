"""Progress of reading a data set."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SECONDS_BETWEEN_REPORTS = 5.0


def with_progress(examples: Iterable[T], name: str, log: logging.Logger) -> Iterator[T]:
    """Shows a bar on a terminal, and logs a line every few seconds elsewhere."""
    count = 0
    started = reported = time.monotonic()
    with tqdm(desc=name, unit=" examples", disable=not sys.stderr.isatty()) as bar:
        for example in examples:
            yield example
            count += 1
            bar.update()
            if bar.disable and time.monotonic() - reported >= SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                log.info("%s: %s examples so far", name, f"{count:,}")
    log.info("%s: %s examples in %.1f s", name, f"{count:,}", time.monotonic() - started)

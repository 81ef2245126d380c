"""Charts in SVG: a bar for a table's cell, and a histogram."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from pid_jax.html_report.markup import Markup, element

BINS = 25
"""A histogram has at most so many bars."""

# In the histogram's own units: as many as a phone has CSS pixels.
WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 42


def bar(value: float, scale: float, mark: float | None = None) -> Markup:
    """`value` of `scale` as a bar as wide as its place, with a tick at `mark`.

    It is drawn for the eye only: whoever calls this says the value in words, too.
    """
    parts = [element("rect", class_="track", width="100%", height="100%")]
    if math.isfinite(value):
        parts.append(element("rect", class_="bar", width=_percent(value / scale), height="100%"))
    if mark is not None and math.isfinite(mark):
        place = _percent(mark / scale)
        parts.append(element("line", class_="mark", x1=place, x2=place, y1="0", y2="100%"))
    return element("svg", *parts, class_="inline", aria_hidden="true")


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def scale_of(values: Sequence[float]) -> float | None:
    """What a full bar stands for: 1, or 100 for percentages; None where neither holds them all."""
    finite = [value for value in values if math.isfinite(value)]
    for scale in (1.0, 100.0):
        if all(0 <= value <= scale for value in finite):
            return scale
    return None


def tidy_step(span: float, most: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, ... that goes into `span` at most `most` times."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if span <= most * factor * power:
                return factor * power
        power *= 10


@dataclass(frozen=True)
class _Axes:
    """Where lengths from `low` to `high` and counts from 0 to `top` are drawn."""

    low: float
    high: float
    top: int

    def x(self, length: float) -> float:
        return LEFT + (length - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def y(self, count: float) -> float:
        return HEIGHT - BOTTOM - count / self.top * (HEIGHT - TOP - BOTTOM)

    def drawn(self, unit: str) -> Iterator[Markup]:
        """A line for each of a few counts, the lengths below, and their unit."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for count in range(0, self.top + 1, tidy_step(self.top, 4)):
            y = self.y(count)
            yield element("line", class_="grid", x1=LEFT, x2=right, y1=y, y2=y)
            yield element("text", f"{count:,}", text_anchor="end", x=LEFT - 6, y=y + 4)
        step = tidy_step(self.high - self.low, 6)
        for length in range(math.ceil(self.low / step) * step, math.ceil(self.high), step):
            x = self.x(length)
            yield element("line", class_="tick", x1=x, x2=x, y1=bottom, y2=bottom + 4)
            yield element("text", f"{length:,}", text_anchor="middle", x=x, y=bottom + 17)
        middle = (LEFT + right) / 2
        yield element("text", unit, text_anchor="middle", x=middle, y=HEIGHT - 6)


def histogram(
    values: Int[np.ndarray, " texts"],
    *,
    identifier: str,
    title: str,
    description: str,
    unit: str,
    limit: int | None = None,
) -> Markup:
    """How often each length occurs. `identifier` is unique in the page; a `limit` is marked."""
    step = tidy_step(int(values.max() - values.min()) + 1, BINS - 1)
    first = int(values.min()) // step
    counts = np.bincount(values // step - first)
    # The bar of the lengths a, ..., b starts half a number before a: a single one is centred.
    axes = _Axes(
        low=first * step - 0.5,
        high=(first + len(counts)) * step - 0.5,
        top=_tidy_top(int(counts.max())),
    )
    parts = [
        element("title", title, id=f"{identifier}-title"),
        element("desc", description, id=f"{identifier}-description"),
        *axes.drawn(unit),
        *(
            _histogram_bar((first + place) * step, step, count, axes, unit)
            for place, count in enumerate(counts.tolist())
            if count
        ),
    ]
    if limit is not None and axes.low < limit < axes.high:
        x = axes.x(limit + 0.5)
        parts.append(element("line", class_="limit", x1=x, x2=x, y1=TOP - 6, y2=HEIGHT - BOTTOM))
    return element(
        "svg",
        *parts,
        class_="histogram",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{identifier}-title {identifier}-description",
    )


def _tidy_top(count: int) -> int:
    step = tidy_step(count, 4)
    return step * math.ceil(count / step)


def _histogram_bar(start: int, step: int, count: int, axes: _Axes, unit: str) -> Markup:
    left, right = axes.x(start - 0.5), axes.x(start - 0.5 + step)
    height = max(axes.y(0) - axes.y(count), 1)  # one of many still shows
    lengths = f"{start:,}" if step == 1 else f"{start:,} to {start + step - 1:,}"
    return element(
        "rect",
        element("title", f"{lengths} {unit}: {count:,}"),
        class_="bar",
        x=left + 0.04 * (right - left),
        width=0.92 * (right - left),
        y=axes.y(0) - height,
        height=height,
    )

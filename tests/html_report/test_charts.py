"""Charts: bars as long as what they stand for, within their frame, and said in words."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pid_jax.html_report import charts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], 1.0),
        ([0.5, 75.0], 100.0),
        ([math.nan, 0.2], 1.0),
        ([-0.1, 0.5], None),
        ([250.0], None),
        ([], 1.0),
    ],
)
def test_a_full_bar_is_one_or_a_hundred(values: list[float], expected: float | None) -> None:
    assert charts.scale_of(values) == expected


def test_a_bar_is_as_long_as_its_share_and_the_mark_stands_at_its_own() -> None:
    bar = ElementTree.fromstring(charts.bar(30.0, 100.0, mark=75.0))
    assert bar.get("aria-hidden") == "true"
    assert bar.find("rect[@class='bar']").get("width") == "30.00%"
    assert bar.find("line[@class='mark']").get("x1") == "75.00%"


def test_what_is_no_number_has_no_bar() -> None:
    bar = ElementTree.fromstring(charts.bar(math.nan, 1.0, mark=math.inf))
    assert [part.get("class") for part in bar] == ["track"]


@pytest.mark.parametrize(
    ("span", "most", "expected"),
    [(1, 5, 1), (6, 5, 2), (10, 5, 2), (11, 5, 5), (26, 5, 10), (480, 24, 20), (481, 24, 50)],
)
def test_steps_are_tidy(span: int, most: int, expected: int) -> None:
    assert charts.tidy_step(span, most) == expected


def histogram(values: list[int], limit: int | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(
        charts.histogram(
            np.array(values),
            identifier="h",
            title="Lengths",
            description="Some lengths",
            unit="tokens",
            limit=limit,
        )
    )


def test_each_bar_says_what_it_counts() -> None:
    bars = histogram([3, 3, 3, 5, 60]).findall("rect")
    # 58 lengths in at most 24 steps: by fives.
    assert [bar.findtext("title") for bar in bars] == [
        "0 to 4 tokens: 3",
        "5 to 9 tokens: 1",
        "60 to 64 tokens: 1",
    ]
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.01)


def test_few_lengths_have_a_bar_each() -> None:
    bars = histogram([7, 7, 8]).findall("rect")
    assert [bar.findtext("title") for bar in bars] == ["7 tokens: 2", "8 tokens: 1"]


def test_a_histogram_is_named_and_described() -> None:
    chart = histogram([1, 2])
    assert chart.get("role") == "img"
    named = {part.get("id"): part.text for part in chart if part.get("id")}
    assert named == {"h-title": "Lengths", "h-description": "Some lengths"}
    assert chart.get("aria-labelledby").split() == list(named)


def test_the_limit_stands_right_of_what_it_admits() -> None:
    chart = histogram([1, 2, 3, 4], limit=2)
    limit = float(chart.find("line[@class='limit']").get("x1"))
    bars = [(float(bar.get("x")), float(bar.get("width"))) for bar in chart.findall("rect")]
    assert bars[1][0] + bars[1][1] <= limit <= bars[2][0]
    assert histogram([1, 2], limit=9).find("line[@class='limit']") is None


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_whatever_the_lengths_all_are_counted_within_the_frame(values: list[int]) -> None:
    chart = histogram(values)
    bars = chart.findall("rect")
    counts = [int(bar.findtext("title").rpartition(": ")[2].replace(",", "")) for bar in bars]
    assert sum(counts) == len(values)
    assert len(bars) <= charts.BINS
    for bar in bars:
        x, y, width, height = (float(bar.get(key)) for key in ("x", "y", "width", "height"))
        assert charts.LEFT <= x < x + width <= charts.WIDTH - charts.RIGHT + 0.01
        assert charts.TOP - 0.01 <= y < y + height <= charts.HEIGHT - charts.BOTTOM + 0.02
    for text in chart.findall("text"):
        assert 0 <= float(text.get("x")) <= charts.WIDTH

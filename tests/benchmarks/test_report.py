"""The table and the charts, from figures made up."""

import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chart, report


def measured(median: float, **more: Any) -> dict[str, Any]:
    seconds = [median, median - 0.5, median + 1.5]
    summary = {"median": median, "min": min(seconds), "max": max(seconds), "seconds": seconds}
    return summary | {"variant": "default", "ratio": None, "fraction_of_limit": None} | more


ENTRY: dict[str, Any] = {
    "name": "qa",
    "workload": {
        "model": "t5-base",
        "documents": 1,
        "document_tokens": 256,
        "prompts": 6,
        "prompt_tokens": 16,
        "new_tokens": 12,
    },
    "limits": {
        "pid": {"encoder": 0.5, "steps": 0.5, "total": 1.0},
        "pie": {"encoder": 3.0, "steps": 0.5, "total": 3.5},
    },
    "engines": {
        "transformers-pie": measured(10.0, ratio=5.0, fraction_of_limit=0.35),
        "ctranslate2-int8": measured(4.0, ratio=2.0),
        "pid_jax-pid": measured(2.0, ratio=1.0, fraction_of_limit=0.5),
    },
    "agreement": [
        {
            "engines": ["pid_jax-pie", "transformers-pie"],
            "equal_tokens": 0.75,
            "divergences": [[0, 3, 7]],
            "gaps": [2e-6],
            "agree": True,
        }
    ],
    "left_out": {"ctranslate2": "ctranslate2 is not installed: pip install it"},
}
GROWTH: dict[str, Any] = {
    "workload": "dst",
    "points": [
        {
            "prompts": prompts,
            "limits": {"pid": 0.1, "pie": 0.1 * prompts},
            "pid": measured(1.0),
            "pie": measured(1.0 * prompts),
        }
        for prompts in (1, 2, 4)
    ],
}


def test_a_line_of_the_table_has_time_ratio_and_fraction() -> None:
    lines = report.table(ENTRY).splitlines()
    (line,) = [line for line in lines if "transformers PiE" in line and "equal" not in line]
    assert line.split() == [
        *("transformers", "PiE", "10.000", "9.500", "–", "11.500", "5.00", "35%", "3,", "default")
    ]


def test_eight_bit_arithmetic_has_no_fraction_of_a_float_limit() -> None:
    (line,) = [line for line in report.table(ENTRY).splitlines() if "int8" in line]
    assert "%" not in line
    assert "2.00" in line


def test_the_table_names_what_was_left_out_and_where_answers_part() -> None:
    text = report.table(ENTRY)
    assert "left out: CTranslate2 PiE: ctranslate2 is not installed" in text
    assert "75.0% of tokens equal" in text
    assert "prompt 3) at 7" in text
    assert "near ties" in text


def test_ratios_are_to_this_projects_prompt_in_decoder() -> None:
    assert report.ratios({"ctranslate2": {"median": 6.0}, "pid_jax-pid": {"median": 2.0}}) == {
        "ctranslate2": 3.0,
        "pid_jax-pid": 1.0,
    }
    assert report.ratios({"ctranslate2": {"median": 6.0}}) == {"ctranslate2": None}


def test_the_growth_table_sets_both_methods_side_by_side() -> None:
    last = report.growth_table(GROWTH).splitlines()[-1]
    assert last.split() == ["4", "1.000", "0.100", "4.000", "0.400", "4.0"]


def test_charts_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = copy.deepcopy(ENTRY)
    other["engines"]["pid_jax-pid"]["ratio"] = None
    chart.draw_engines([ENTRY, other], "a machine", tmp_path / "inference.png")
    chart.draw_growth(GROWTH, "a machine", tmp_path / "growth.png")
    for name in ("inference.png", "growth.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

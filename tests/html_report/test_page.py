"""The report: well-formed, by itself, readable by all, and nothing in it runs."""

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pid_jax.data.examples import Example, Subtask
from pid_jax.html_report import examples, page
from pid_jax.html_report.page import MOST_ROWS
from pid_jax.scoring import Answer, Evaluation, Lengths
from pid_jax.tasks import Report
from tests.helpers import browser, evaluations

ABOUT = {"task": "two_slots", "split": "test", "checkpoint": "runs/x"}
STYLE = Path(examples.__file__).with_name("style.css").read_text(encoding="utf-8")


def parsed(evaluation: Evaluation) -> ElementTree.Element:
    written = page(evaluation, ABOUT)
    written.encode("utf-8")
    assert written.startswith("<!DOCTYPE html>\n<html")
    return ElementTree.fromstring(written)


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def section(root: ElementTree.Element, heading: str) -> ElementTree.Element:
    [found] = [part for part in root.iter("section") if part.findtext("h2") == heading]
    return found


def cells(table: ElementTree.Element) -> list[list[str]]:
    return [[text_of(cell) for cell in row] for row in table.findall("tbody/tr")]


@pytest.fixture(scope="module", params=["dialogues", "hostile"])
def root(request: pytest.FixtureRequest) -> ElementTree.Element:
    return parsed(getattr(evaluations, request.param)())


def test_nothing_is_fetched_and_nothing_runs(root: ElementTree.Element) -> None:
    for element in root.iter():
        assert element.tag not in {"script", "link", "img", "iframe", "object", "embed", "base"}
        for name in element.attrib:
            assert name not in {"src", "href", "style", "action"}
            assert not name.startswith("on")
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    policy = root.find("head/meta[@http-equiv='Content-Security-Policy']")
    assert policy.get("content").startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_it_is_accessible(root: ElementTree.Element) -> None:
    assert root.get("lang") == "en"
    assert root.findtext("head/title")
    identifiers = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for table in root.iter("table"):
        assert table.findtext("caption") is not None
        assert all(head.get("scope") == "col" for head in table.findall("thead/tr/th"))
        assert all(row.find("th").get("scope") == "row" for row in table.findall("tbody/tr"))
    charts = list(root.iter("svg"))
    assert charts
    for chart in charts:
        if chart.get("aria-hidden") != "true":  # beside its value in words
            assert chart.findtext("title")
            assert chart.findtext("desc")
            assert set(chart.get("aria-labelledby").split()) <= set(identifiers)
    levels = [int(element.tag[1]) for element in root.iter() if re.fullmatch(r"h\d", element.tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_hostile_texts_are_shown_as_they_are() -> None:
    shown = text_of(parsed(evaluations.hostile()))
    assert shown.count("<script>console.error('run')</script>") >= 10
    assert "\x1b" not in shown
    assert "␛" in shown


def test_scores_stand_beside_the_baseline_with_their_rules() -> None:
    scores = section(parsed(evaluations.dialogues()), "Scores")
    assert cells(scores.find(".//table")) == [
        ["joint_goal_accuracy", "0.9000", "0.0000", ""],
        ["slot_accuracy", "0.9500", "0.5000", ""],
    ]
    bars = [bar.get("width") for bar in scores.findall(".//rect[@class='bar']")]
    assert bars == ["90.00%", "95.00%"]
    rules = [(text_of(key), text_of(value)) for key, value in zip(
        scores.findall(".//dt"), scores.findall(".//dd"), strict=True
    )]  # fmt: skip
    assert rules == [("data", "hand-made"), ("none", "absent")]


def test_percentages_and_numbers_of_questions_are_told_apart() -> None:
    squad = dataclasses.replace(
        evaluations.dialogues(),
        report=Report({"exact": 50.0, "total": 11873.0}),
        baseline=None,
    )
    [table] = section(parsed(squad), "Scores").iter("table")
    assert [text_of(head) for head in table.find("thead/tr")] == ["metric", "score", "0 to 100"]
    assert cells(table) == [["exact", "50.0000", ""], ["total", "11,873", ""]]
    assert len(list(table.iter("svg"))) == 1


def test_scores_of_any_size_go_without_bars() -> None:
    other = dataclasses.replace(
        evaluations.dialogues(), report=Report({"loss": 250.5}), baseline=None
    )
    [table] = section(parsed(other), "Scores").iter("table")
    assert cells(table) == [["loss", "250.5000"]]


def test_tables_split_the_scores_up_and_say_when_they_are_cut() -> None:
    evaluation = evaluations.dialogues()
    split = section(parsed(evaluation), "Scores, split up")
    assert cells(split.find(".//table")) == [
        ["area", "0.9000", "0.0000", ""],
        ["stars", "1.0000", "1.0000", ""],
    ]

    many = {f"slot {n}": n / 1000 for n in range(500, 0, -1)}
    evaluation = dataclasses.replace(evaluation, report=Report({"a": 0.1}, tables={"many": many}))
    [table] = section(parsed(evaluation), "Scores, split up").iter("table")
    assert table.findtext("caption") == "many: the 100 lowest of 500 (metrics.json has all)"
    assert [row[0] for row in cells(table)] == [f"slot {n}" for n in range(MOST_ROWS, 0, -1)]

    none = dataclasses.replace(evaluation, report=Report({"a": 0.1}))
    assert "Scores, split up" not in text_of(parsed(none))


def test_lengths_have_histograms_with_the_limits_told() -> None:
    lengths = section(parsed(evaluations.dialogues()), "Lengths")
    captions = [text_of(caption) for caption in lengths.iter("figcaption")]
    assert [caption.partition(":")[0] for caption in captions] == [
        "Documents", "Prompts", "Targets", "Predictions",
    ]  # fmt: skip
    # 20 to 59 twice, 60 to 79 once: the limit of 50 is passed by 51 to 59 twice and by those.
    assert captions[0] == (
        "Documents: 100, from 20 to 79 tokens, median 45, 95% up to 75, 38 over the limit of 50"
    )
    assert len(list(lengths.iter("svg"))) == 4
    assert len(lengths.findall(".//line[@class='limit']")) == 1


def test_speed_and_versions_are_told_or_said_to_be_unknown() -> None:
    root = parsed(evaluations.dialogues())
    speed = text_of(section(root, "Speed and limits"))
    for expected in ("prompt-in-decoder", "0.1250 s", "2.0 prompts", "12.5 s", "30 of 100"):
        assert expected in speed
    assert "jax" in text_of(section(root, "Versions"))
    elsewhere = dataclasses.replace(evaluations.dialogues(), run=None)
    assert "made elsewhere" in text_of(section(parsed(elsewhere), "Speed and limits"))


def test_the_worst_examples_show_what_differs_and_what_says_something() -> None:
    worst = section(parsed(evaluations.dialogues()), "Worst examples")
    assert "Of 100 examples 10 have a prediction" in text_of(worst)
    articles = worst.findall("article")
    # All differ alike: the least likely prediction is that of the last.
    assert [article.findtext("h3") for article in articles] == [
        f"d:{n}" for n in range(90, -1, -10)
    ]
    first = articles[0]
    assert text_of(first.find(".//div[@role='region']")) == "document 90 in the north"
    assert cells(first.find(".//table")) == [["area ?", "north", "≠ south", "0.00", "-90.50"]]
    assert "1 of 2 predictions differ; 1 are not shown (0 of them differ)" in text_of(first)


def test_without_a_wrong_prediction_it_says_so() -> None:
    evaluation = evaluations.dialogues(1)
    right = dataclasses.replace(evaluation, answers=[[Answer("north"), Answer("none")]])
    worst = section(parsed(right), "Worst examples")
    assert "Every prediction is a right answer" in text_of(worst)
    assert worst.find("article") is None


def test_several_right_answers_and_empty_texts_are_shown() -> None:
    subtask = Subtask("q", "when ?", "two", references=("two", "in two", "two", *"bcdefg"))
    evaluation = dataclasses.replace(
        evaluations.dialogues(1),
        examples=[Example("p", "text", (subtask,))],
        answers=[[Answer("")]],
    )
    table = section(parsed(evaluation), "Worst examples").find(".//article//table")
    assert cells(table) == [
        ["when ?", "two or in two or b or c or d or 3 more", "≠ (empty)", "0.00"]
    ]


def test_the_file_stays_small_however_large_the_set() -> None:
    long = "word & <word> " * 600
    subtasks = tuple(Subtask(str(n), long, long, references=(long,) * 9) for n in range(45))
    count = examples.MOST_EXAMPLES + 1
    evaluation = dataclasses.replace(
        evaluations.dialogues(),
        examples=[Example(f"{n} {long}", long, subtasks) for n in range(count)],
        answers=[[Answer("x" * 9_000)] * 45] * count,
        lengths=Lengths("words", {"documents": np.arange(count)}),
    )
    written = page(evaluation, ABOUT)
    assert len(written) < 3_000_000
    worst = section(ElementTree.fromstring(written), "Worst examples")
    assert f"Of {count} examples {count} have a prediction" in text_of(worst)
    assert len(worst.findall("article")) == examples.MOST_EXAMPLES
    assert "5 are not shown (5 of them differ)" in text_of(worst)
    assert f"[{len(long) - examples.DOCUMENT_CHARACTERS:,} characters]" in text_of(worst)


def luminance(colour: str) -> float:
    """Of "#rrggbb", as WCAG 2.2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_apart_in_light_in_dark_and_in_print() -> None:
    palettes = [dict(re.findall(r"--(\w+): (#\w{6})", rules)) for rules in STYLE.split(":root")[1:]]
    assert len(palettes) == 3
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colours in palettes:
        for text in ("text", "muted", "differs"):
            for ground in ("page", "panel"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for drawn, ground in (("bar", "page"), ("mark", "page"), ("mark", "track")):
            assert contrast(colours[drawn], colours[ground]) >= 3, (drawn, ground)


MEASURING = """<script>
  const outside = [...document.querySelectorAll("main *")].filter(element =>
    !element.closest(".scroll") && element.getBoundingClientRect().right > innerWidth + 1);
  document.documentElement.dataset.measured = JSON.stringify({
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    outside: outside.map(element => element.outerHTML.slice(0, 80)),
    charts: [...document.querySelectorAll("svg")].filter(chart => {
      const box = chart.getBoundingClientRect(); return box.width > 30 && box.height > 8; }).length,
    text: Math.min(...[...document.querySelectorAll("svg text")].map(
      text => text.getBoundingClientRect().height)),
  });
</script></body>"""


@pytest.mark.parametrize("name", ["dialogues", "hostile"])
def test_a_browser_opens_it_and_its_console_stays_empty(name: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    written = page(getattr(evaluations, name)(), ABOUT)
    file.write_text(written, encoding="utf-8")
    opened = browser.open_page(file, profile=tmp_path / "profile")
    assert opened.console == []
    assert opened.dom.count("<svg") == written.count("<svg") > 1
    assert opened.dom.count("</article>") == written.count("</article>") > 0
    assert "<script" not in opened.dom


def test_the_console_is_read_and_the_page_lets_no_script_run(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    broken = page(evaluations.dialogues(), ABOUT).replace(
        "</body>", "<script>document.title = 'run'</script></body>"
    )
    file.write_text(broken, encoding="utf-8")
    opened = browser.open_page(file, profile=tmp_path / "profile")
    assert any("Content Security Policy" in message for message in opened.console)
    assert "<title>run</title>" not in opened.dom


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_phones_and_desks(width: int, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    written = page(evaluations.dialogues(), ABOUT)
    allowed, replaced = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", written)
    assert replaced == 1
    file.write_text(allowed.replace("</body>", MEASURING), encoding="utf-8")
    opened = browser.open_page(file, width=width, profile=tmp_path / "profile")
    data = re.search(r'data-measured="([^"]*)"', opened.dom)[1].replace("&quot;", '"')
    measured = json.loads(data)
    assert measured["overflow"] == 0
    assert measured["outside"] == []
    assert measured["charts"] == written.count("<svg")
    assert measured["text"] >= 9

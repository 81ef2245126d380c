"""Markup: what is not markup is escaped, whatever it is, and the result is well-formed."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pid_jax.html_report.markup import Markup, element, escaped, joined, table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b a='1'>&</b>", "&lt;b a=&#x27;1&#x27;&gt;&amp;&lt;/b&gt;"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("\x00\x1b", "␀␛"),
        ("\x7f\x85\ud800\ufffe\U0010ffff", "�����"),
        ("é 日本 😀", "é 日本 😀"),
    ],
)
def test_texts_are_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_markup_stays_as_it_is() -> None:
    assert escaped(Markup("<b></b>")) == "<b></b>"
    assert element("p", "a<b", element("b", "c")) == "<p>a&lt;b<b>c</b></p>"
    assert joined(["a", "<"], ", ") == "a, &lt;"


def test_attributes_are_named_and_numbers_are_short() -> None:
    written = element("rect", class_="bar", aria_label='"x"', x=1 / 3, y=2.0, height=10)
    assert written == (
        '<rect class="bar" aria-label="&quot;x&quot;" x="0.33" y="2" height="10"></rect>'
    )


def test_an_element_without_content_has_no_end_tag() -> None:
    assert element("meta", charset="utf-8") == '<meta charset="utf-8" />'


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_makes_well_formed_elements(text: str) -> None:
    parsed = ElementTree.fromstring(element("p", text, title=text))
    assert len(parsed) == 0
    (element("p", text) + "").encode("utf-8")
    if text.isascii() and text.isprintable():
        assert (parsed.text or "") == parsed.attrib["title"] == text


def test_a_table_has_a_caption_and_headings_of_columns_and_rows() -> None:
    written = table("all", [("name", "text"), ("value", "number")], [["a", "1"], ["b", "2"]])
    parsed = ElementTree.fromstring(written)
    assert parsed.findtext("table/caption") == "all"
    heads = parsed.findall("table/thead/tr/th")
    assert [(head.text, head.get("scope")) for head in heads] == [("name", "col"), ("value", "col")]
    rows = parsed.findall("table/tbody/tr")
    assert [(row.findtext("th"), row.findtext("td")) for row in rows] == [("a", "1"), ("b", "2")]
    assert all(row.find("th").get("scope") == "row" for row in rows)

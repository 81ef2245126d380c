"""HTML that cannot be broken by what it shows: texts are escaped unless they are markup.

What comes out is well-formed XML, too.
"""

import html
import re
from collections.abc import Iterable, Sequence

_VOID = ("meta",)

# What neither HTML nor XML can hold, but texts of users can: control characters, halves of
# surrogate pairs, code points that are no characters.
_LINE_ENDS = re.compile(r"\r\n?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_NO_CHARACTER = re.compile(
    "[\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)


class Markup(str):
    """HTML, as opposed to text."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """`text` as it can stand between tags and in attributes; markup stays as it is.

    A control character is shown by its picture (U+2400 ...), what is no character as U+FFFD.
    """
    if isinstance(text, Markup):
        return text
    text = _LINE_ENDS.sub("\n", text)
    text = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), text)
    return Markup(html.escape(_NO_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)))


def element(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """<name attribute="...">children</name>; children that are no Markup are escaped.

    `class_` is the attribute class, `aria_label` is aria-label. Numbers have two decimals at most.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
    )
    if name in _VOID:
        return Markup(f"<{name}{written} />")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """The parts one after the other, each one escaped unless it is markup."""
    return Markup(escaped(between).join(map(escaped, parts)))


def table(
    caption: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]
) -> Markup:
    """A table. `columns` are headings, each with the class of its cells; a row's first cell is
    the row's heading.
    """
    heads = (element("th", name, scope="col", class_=kind) for name, kind in columns)
    written = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", *(_row(cells, [kind for _, kind in columns]) for cells in rows)),
    )
    return element("div", written, class_="scroll")


def _row(cells: Sequence[str], kinds: Sequence[str]) -> Markup:
    first = element("th", cells[0], scope="row", class_=kinds[0], dir="auto")
    others = (
        element("td", cell, class_=kind, dir="auto")
        for cell, kind in zip(cells[1:], kinds[1:], strict=True)
    )
    return element("tr", first, *others)


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return escaped(value)
    return f"{value:.2f}".rstrip("0").rstrip(".")

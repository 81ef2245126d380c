"""Text of MultiWOZ, normalised as TRADE normalises it."""

import pytest

from pid_jax.tasks.multiwoz_text import normalized


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("I don't  KNOW", "i do not know"),
        ("It's 3.50 pounds.", "it s 3.50 pounds ."),
        ("Saint John's College", "saint john s college"),
        ("'hello' there!", "hello there !"),
        ("moderately priced restaurants", "moderate -ly priced restaurant -s"),
        ("restaurant two two", "restaurant 2 two"),  # words share a space: as TRADE has it
        ("restaurant one seven", "restaurant 17"),
        ("not(hamilton lodge)", "nothamilton lodge"),
        ("a/b;c", "a and b , c"),
        ("\u2018quoted\u2019", "quoted"),
    ],
)
def test_text_is_normalised_as_trade_does(written, normal):
    assert normalized(written) == normal

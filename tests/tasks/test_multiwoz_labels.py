"""Labels of MultiWOZ, corrected as TRADE corrects them."""

import pytest

from pid_jax.tasks.multiwoz_labels import corrected_label


@pytest.mark.parametrize(
    ("slot", "value", "corrected"),
    [
        ("hotel-type", "guesthouses", "guest house"),
        ("hotel-type", "bed and breakfast", "none"),
        ("hotel-name", "bed and breakfast", "bed and breakfast"),
        ("hotel-type", "3 star hotel", "hotel"),
        ("hotel-internet", "free internet", "yes"),
        ("hotel-internet", "free", "yes"),
        ("hotel-parking", "free parking", "free"),  # as TRADE has it
        ("hotel-stars", "4 stars", "4"),
        ("hotel-pricerange", "2", "none"),
        ("hotel-book people", "2", "2"),
        ("restaurant-pricerange", "ch", "cheap"),
        ("restaurant-area", "cambridge", "none"),
        ("train-departure", "cambridge", "cambridge"),
        ("attraction-area", "ely", "none"),
        ("attraction-area", "we", "west"),
        ("train-day", "we", "wednesday"),
        ("restaurant-book day", "no", "none"),
        ("hotel-area", "no", "north"),
        ("hotel-parking", "n", "no"),
        ("hotel-area", "n", "north"),  # first "no", then "north"
        ("attraction-type", "art", "none"),
        ("attraction-type", "mutliple sports", "multiple sports"),
        ("train-leaveat", "not mentioned", "none"),
        ("train-leaveat", "", "none"),
        ("hotel-area", "dont care", "dontcare"),
        ("hotel-area", "do not care", "dontcare"),
        ("hotel-area", "don't care", "dontcare"),
        ("hotel-area", "any", "dontcare"),
        ("hotel-area", "north|east", "north|east"),
        ("hotel-name", "Acorn  Guest House", "acorn guest house"),
    ],
)
def test_labels_are_corrected_as_trade_does(slot, value, corrected):
    assert corrected_label(slot, value) == corrected

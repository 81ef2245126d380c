"""TRADE's corrections of MultiWOZ labels: noisy values mapped to those of the ontology.

The tables have the rules of `fix_general_label_error` in utils/fix_label.py of
jasonwu0731/trade-dst (Wu et al. 2019, arXiv 1905.08743), which published figures depend on. Some
rules look wrong ("art" is no value, "free parking" becomes "free"), but comparable figures need
them. The rule for "hotel-star" is left out, because no slot has that name.
"""

import re

from pid_jax.tasks.dialogue_state import DONTCARE, NONE

# Spellings of "dontcare", which TRADE's create_data.py unifies.
_INDIFFERENCE = re.compile(r"dont care|dontcare|don't care|do not care|do n't care")

# Wrong in every slot.
_ANYWHERE = {
    # types of hotels and attractions
    "guesthouse": "guest house",
    "guesthouses": "guest house",
    "guest": "guest house",
    "mutiple sports": "multiple sports",
    "mutliple sports": "multiple sports",
    "sports": "multiple sports",
    "swimmingpool": "swimming pool",
    "pool": "swimming pool",
    "concerthall": "concert hall",
    "concert": "concert hall",
    "night club": "nightclub",
    "mus": "museum",
    "musuem": "museum",
    "ol": "architecture",
    "architectural": "architecture",
    "colleges": "college",
    "coll": "college",
    "churches": "church",
    # areas
    "center": "centre",
    "center of town": "centre",
    "near city center": "centre",
    "cen": "centre",
    "ce": "centre",
    "town center": "centre",
    "centre of cambridge": "centre",
    "city center": "centre",
    "scentre": "centre",
    "town centre": "centre",
    "in town": "centre",
    "centre of town": "centre",
    "in the north": "north",
    "north part of town": "north",
    "the south": "south",
    "east side": "east",
    "east area": "east",
    "west part of town": "west",
    "cb30aq": NONE,
    # prices
    "mode": "moderate",
    "moderate -ly": "moderate",
    "mo": "moderate",
    # days
    "next friday": "friday",
    "monda": "monday",
    "thur": "thursday",
    "not given": NONE,
    # parking, internet, stars
    "free parking": "free",
    "free internet": "yes",
    "4 star": "4",
    "4 stars": "4",
    "0 star rarting": NONE,
    # anything
    "y": "yes",
    "n": "no",
    "does not": "no",
    "any": DONTCARE,
    "does not care": DONTCARE,
    "3 .": "3",
    "not men": NONE,
    "not": NONE,
    "not mentioned": NONE,
    "not mendtioned": NONE,
    "no mentioned": NONE,
    "": NONE,
    "fun": NONE,
    "art": NONE,
}

_AREA = {"no": "north", "we": "west", "cent": "centre", "moderate": NONE}
_DAY = {"we": "wednesday", "no": NONE, "t": NONE}
_PRICE = {"ch": "cheap"}

# Wrong in one slot only, applied after `_ANYWHERE`.
_IN_SLOT = {
    "hotel-type": {
        **dict.fromkeys(
            (
                "nigh",
                "moderate -ly priced",
                "bed and breakfast",
                "centre",
                "venetian",
                "intern",
                "a cheap -er hotel",
            ),
            NONE,
        ),
        **dict.fromkeys(("hotel with free parking and free wifi", "4", "3 star hotel"), "hotel"),
    },
    "hotel-internet": {"4": NONE, "free": "yes"},
    "hotel-pricerange": {"2": NONE, **_PRICE},
    "hotel-area": _AREA,
    "hotel-book day": _DAY,
    "attraction-type": dict.fromkeys(
        ("gastropub", "la raza", "galleria", "gallery", "science", "m"), NONE
    ),
    "attraction-area": {
        **_AREA,
        **dict.fromkeys(("norwich", "ely", "museum", "same area as hotel"), NONE),
    },
    "restaurant-pricerange": _PRICE,
    "restaurant-area": {
        **_AREA,
        **dict.fromkeys(("stansted airport", "cambridge", "silver street"), NONE),
    },
    "restaurant-book day": _DAY,
    "train-day": _DAY,
}


def corrected_label(slot: str, value: str) -> str:
    """The value of a slot as benchmarks score it, "none" for an absent one."""
    value = " ".join(value.lower().split())
    if _INDIFFERENCE.fullmatch(value):
        return DONTCARE
    value = _ANYWHERE.get(value, value)
    return _IN_SLOT.get(slot, {}).get(value, value)

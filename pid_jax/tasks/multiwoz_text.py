"""TRADE's normalisation of MultiWOZ's utterances and values.

Utterances and labels of the raw releases mix spellings ("b&b", "two", "restaurants"). Published
figures follow the rules of `normalize` in create_data.py of jasonwu0731/trade-dst (Wu et al.
2019, arXiv 1905.08743) and of smartyfh/MultiWOZ2.4. The table has the entries of their
utils/mapping.pair.
"""

import re

# Whole words, replaced in this order.
_WORDS = {
    "it's": "it is",
    "don't": "do not",
    "doesn't": "does not",
    "didn't": "did not",
    "you'd": "you would",
    "you're": "you are",
    "you'll": "you will",
    "i'm": "i am",
    "they're": "they are",
    "that's": "that is",
    "what's": "what is",
    "couldn't": "could not",
    "i've": "i have",
    "we've": "we have",
    "can't": "cannot",
    "i'd": "i would",
    "aren't": "are not",
    "isn't": "is not",
    "wasn't": "was not",
    "weren't": "were not",
    "won't": "will not",
    "there's": "there is",
    "there're": "there are",
    ". .": ".",
    "restaurants": "restaurant -s",
    "hotels": "hotel -s",
    "laptops": "laptop -s",
    "cheaper": "cheap -er",
    "dinners": "dinner -s",
    "lunches": "lunch -s",
    "breakfasts": "breakfast -s",
    "expensively": "expensive -ly",
    "moderately": "moderate -ly",
    "cheaply": "cheap -ly",
    "prices": "price -s",
    "places": "place -s",
    "venues": "venue -s",
    "ranges": "range -s",
    "meals": "meal -s",
    "locations": "location -s",
    "areas": "area -s",
    "policies": "policy -s",
    "children": "child -s",
    "kids": "kid -s",
    "kidfriendly": "kid friendly",
    "cards": "card -s",
    "upmarket": "expensive",
    "inpricey": "cheap",
    "inches": "inch -s",
    "uses": "use -s",
    "dimensions": "dimension -s",
    "driverange": "drive range",
    "includes": "include -s",
    "computers": "computer -s",
    "machines": "machine -s",
    "families": "family -s",
    "ratings": "rating -s",
    "constraints": "constraint -s",
    "pricerange": "price range",
    "batteryrating": "battery rating",
    "requirements": "requirement -s",
    "drives": "drive -s",
    "specifications": "specification -s",
    "weightrange": "weight range",
    "harddrive": "hard drive",
    "batterylife": "battery life",
    "businesses": "business -s",
    "hours": "hour -s",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "eleven": "11",
    "twelve": "12",
    "anywhere": "any where",
    "good bye": "goodbye",
}

_AROUND_PUNCTUATION = tuple(
    # Not inside a number.
    (re.compile(rf"(?<!\d)\{mark}|\{mark}(?!\d)"), f" {mark} ")
    for mark in "?.,!"
)
_MAX_TOKENS = 50


def normalized(text: str, *, split_compounds: bool = False) -> str:
    """Lower-case text with one space between tokens and the spelling of MultiWOZ's labels.

    split_compounds: replace "guesthouse" by "guest house", as MultiWOZ 2.4 does and TRADE does
    not.
    """
    text = text.lower().strip()
    if split_compounds:
        text = text.replace("guesthouse", "guest house")
    for written, meant in (
        ("b&b", "bed and breakfast"),
        ("b and b", "bed and breakfast"),
        ("\u2018", "'"),
        ("\u2019", "'"),
        (";", ","),
        ("/", " and "),
        ("-", " "),
    ):
        text = text.replace(written, meant)
    text = re.sub(r'["<>@()]', "", text)
    for mark, spaced in _AROUND_PUNCTUATION:
        text = mark.sub(spaced, text)
    text = _without_quotes(text.strip())
    for word, replacement in _WORDS.items():
        if word in text:
            text = f" {text} ".replace(f" {word} ", f" {replacement} ")[1:-1]
    return " ".join(_joined_numbers(text.split()))


def left_out(texts: list[str]) -> bool:
    """Whether TRADE leaves out a dialogue. texts: normalised, user and system alternately."""
    return len(texts) % 2 == 1 or any(
        not text.isascii() or len(text.split()) > _MAX_TOKENS for text in texts
    )


def _without_quotes(text: str) -> str:
    """Removes quotation marks, except inside words ("i'm")."""
    text = re.sub(r" *'s(?! )(?=.)", " ' s", text)
    text = re.sub(r" *'s", " 's", text)
    text = re.sub(r"^'|'$", "", text)
    text = re.sub(r"'\s", " ", text)
    text = re.sub(r"\s'", " ", text)
    return re.sub(" +", " ", text)


def _joined_numbers(tokens: list[str]) -> list[str]:
    """Joins numbers spoken digit by digit: "1 7" becomes "17"."""
    joined: list[str] = []
    for token in tokens:
        if joined and token.isdecimal() and joined[-1].isdecimal():
            joined[-1] += token
        else:
            joined.append(token)
    return joined

"""The layouts of MultiWOZ releases other than 2.2.

TRADE's create_data.py writes train_dials.json, dev_dials.json and test_dials.json:

    [{"dialogue_idx": "SNG1.json", "dialogue": [{"system_transcript": "", "transcript": "...",
      "belief_state": [{"slots": [["hotel-area", "north"]], "act": "inform"}]}, ...]}, ...]

where the system's utterance precedes the user's. A release itself is one data.json:

    {"SNG1.json": {"log": [{"text": "...", "metadata": {}},
      {"text": "...", "metadata": {"hotel": {"book": {"day": "", "booked": []},
                                             "semi": {"area": "north"}}, ...}}, ...]}, ...}

where the system's answer has the state after the preceding user turn. valListFile and
testListFile (.txt, .json or no suffix, depending on the release) in the same folder name the
dialogues of two splits, one per line. All other dialogues are for training. MultiWOZ 2.3 has no
such lists and uses those of 2.1, copied to the folder of data.json. ConvLab-2 splits data.json
into train.json, val.json and test.json, each in a .zip.

States are cumulative in all layouts.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pid_jax.errors import MissingData, UserError
from pid_jax.tasks.dialogue_state import NONE
from pid_jax.tasks.fields import checked, field, identifier_of
from pid_jax.tasks.multiwoz_labels import corrected_label
from pid_jax.tasks.multiwoz_text import left_out, normalized
from pid_jax.tasks.source_files import SourceFiles

log = logging.getLogger(__name__)

_TRADE_FILES = {
    "train": "train_dials.json",
    "validation": "dev_dials.json",
    "test": "test_dials.json",
}
_CONVLAB_FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}
_RAW_FILE = "data.json"
_LISTS = {"validation": "valListFile", "test": "testListFile"}
_LIST_ENDINGS = ("", ".txt", ".json")
# In the TRADE layout, but not among the five scored domains.
_UNTRACKED_DOMAINS = ("bus", "hospital", "police")


@dataclass(frozen=True)
class Turn:
    """A user turn, the preceding system utterance, and the state after it, without absent slots."""

    system: str
    user: str
    state: dict[str, str]


@dataclass(frozen=True)
class Dialogue:
    """One dialogue. `where` is its location in messages."""

    identifier: str
    turns: list[Turn]
    where: str


@dataclass(frozen=True)
class _Reading:
    slots: Collection[str]
    split_compounds: bool

    def normalized(self, text: str) -> str:
        return normalized(text, split_compounds=self.split_compounds)


def dialogues(
    source: SourceFiles, split: str, *, slots: Collection[str], split_compounds: bool
) -> Iterator[Dialogue]:
    """The dialogues of one split, in the order of the file, with the values of `slots`.

    Utterances and values of a release are normalised and some dialogues left out, as TRADE does.
    split_compounds: see `normalized`. Raises MissingData for a missing split and UserError for a
    malformed file.
    """
    reading = _Reading(slots, split_compounds)
    if source.named(*_TRADE_FILES.values()):
        yield from _of_trade(source, source.only(_TRADE_FILES[split]), reading)
    elif source.named(_RAW_FILE):
        yield from _of_release(source, source.only(_RAW_FILE), _chooser(source, split), reading)
    elif source.named(*_CONVLAB_FILES.values()):
        yield from _of_release(source, source.only(_CONVLAB_FILES[split]), _every, reading)
    else:
        raise UserError(
            f"{source.path}: no layout of MultiWOZ is recognised: expected {_RAW_FILE} with "
            f"valListFile and testListFile, or {', '.join(_TRADE_FILES.values())}, or "
            f"{', '.join(_CONVLAB_FILES.values())}; {source.contents()}"
        )


def _of_trade(source: SourceFiles, name: str, reading: _Reading) -> Iterator[Dialogue]:
    for number, entry in enumerate(source.read_json_list(name), start=1):
        identifier = identifier_of(
            entry, "dialogue_idx", f"{source.where(name)}, dialogue number {number}"
        )
        where = f"{source.where(name)}, dialogue {identifier}"
        turns = []
        for turn_number, turn in enumerate(field(entry, "dialogue", list, where)):
            turn_where = f"{where}, turn {turn_number}"
            turns.append(
                Turn(
                    system=field(turn, "system_transcript", str, turn_where),
                    user=field(turn, "transcript", str, turn_where),
                    state=_trade_state(
                        field(turn, "belief_state", list, turn_where), turn_where, reading
                    ),
                )
            )
        yield Dialogue(_full_name(identifier), turns, where)


def _trade_state(belief_state: list[Any], where: str, reading: _Reading) -> dict[str, str]:
    state = {}
    for entry in belief_state:
        for pair in field(entry, "slots", list, f"{where}, belief_state"):
            pair = checked(pair, list, "[slot, value]", where)
            if len(pair) != 2:
                raise UserError(f"{where}: expected [slot, value], got {pair!r}")
            slot = checked(pair[0], str, "a slot", where)
            value = checked(pair[1], str, f"the value of {slot!r}", where)
            if slot.split("-")[0] in _UNTRACKED_DOMAINS:
                continue
            if slot not in reading.slots:
                raise UserError(
                    f"{where}: unknown slot {slot!r}; MultiWOZ has {', '.join(reading.slots)}"
                )
            state[slot] = corrected_label(slot, value)
    return _present(state)


def _of_release(
    source: SourceFiles, name: str, chosen: Callable[[str], bool], reading: _Reading
) -> Iterator[Dialogue]:
    skipped = 0
    for key, entry in source.read_json_object(name):
        if not chosen(_full_name(key)):
            continue
        key = checked(key, str, "the name of a dialogue", source.where(name))
        where = f"{source.where(name)}, dialogue {key}"
        utterances = field(entry, "log", list, where)
        texts = [
            reading.normalized(field(utterance, "text", str, f"{where}, log {number}"))
            for number, utterance in enumerate(utterances)
        ]
        if left_out(texts):
            skipped += 1
            continue
        turns = []
        for number in range(0, len(texts), 2):
            answer = utterances[number + 1]
            answer_where = f"{where}, log {number + 1}"
            turns.append(
                Turn(
                    system=texts[number - 1] if number else "",
                    user=texts[number],
                    state=_release_state(
                        field(answer, "metadata", dict, answer_where), answer_where, reading
                    ),
                )
            )
        yield Dialogue(_full_name(key), turns, where)
    log.info("%s: dialogues left out by TRADE's rules: %d", source.where(name), skipped)


def _release_state(metadata: dict[str, Any], where: str, reading: _Reading) -> dict[str, str]:
    """The values of the tracked slots. Releases have further slots and domains."""
    state = {}
    for domain in metadata:
        domain_where = f'{where}, "metadata", {domain!r}'
        for part, prefix in (("book", "book "), ("semi", "")):
            values = field(
                field(metadata, domain, dict, f'{where}, "metadata"'), part, dict, domain_where
            )
            for key in values:
                slot = f"{domain}-{prefix}{key.strip().lower()}"
                if slot in reading.slots:
                    value = field(values, key, str, f'{domain_where}, "{part}"')
                    # Some annotators separated alternatives with ">" or "<".
                    alternatives = value.replace("<", "|").replace(">", "|")
                    state[slot] = corrected_label(slot, reading.normalized(alternatives))
    return _present(state)


def _present(state: dict[str, str]) -> dict[str, str]:
    return {slot: value for slot, value in state.items() if value != NONE}


def _chooser(source: SourceFiles, split: str) -> Callable[[str], bool]:
    """Whether a dialogue is in a split, by the lists of the release."""
    if split != "train":
        return _listed(source, split).__contains__
    in_lists = _listed(source, "validation") | _listed(source, "test")
    return lambda name: name not in in_lists


def _listed(source: SourceFiles, split: str) -> set[str]:
    files = [_LISTS[split] + ending for ending in _LIST_ENDINGS]
    if not source.named(*files):
        raise MissingData(
            f"{source.path}: {_LISTS[split]} (.txt, .json or no suffix), the list of the split's "
            "dialogues, is missing: if your release has none, copy that of MultiWOZ 2.1 to the "
            f"folder of data.json; {source.contents()}"
        )
    return {_full_name(line.strip()) for line in source.read_lines(source.only(*files)) if line}


def _every(name: str) -> bool:
    return True


def _full_name(identifier: str) -> str:
    """ "SNG1.json" in all layouts. Some lists and layouts shorten it to "SNG1"."""
    return identifier if identifier.endswith(".json") else f"{identifier}.json"

"""MultiWOZ 2.0, 2.1, 2.3 and 2.4 with TRADE's 30 slots.

A path is a directory or a .zip in any of the layouts of `multiwoz_layouts.py`, recognised by its
files. The files do not name the release, so the task's name selects it. MultiWOZ 2.2 has the
layout of Schema-Guided Dialogue, see `schema_guided.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.tasks.dialogue_state import DialogueStateTask, Slot, document_text
from pid_jax.tasks.multiwoz_layouts import dialogues
from pid_jax.tasks.source_files import SourceFiles
from pid_jax.tasks.task import check_split, scoring_option

_DESCRIPTIONS = {
    "attraction-area": "part of town the attraction should be in",
    "attraction-name": "name of the attraction",
    "attraction-type": "kind of attraction, such as museum, park or theatre",
    "hotel-area": "part of town the hotel should be in",
    "hotel-book day": "day of the week the hotel stay begins",
    "hotel-book people": "number of people staying at the hotel",
    "hotel-book stay": "number of nights at the hotel",
    "hotel-internet": "whether the hotel should have internet",
    "hotel-name": "name of the hotel",
    "hotel-parking": "whether the hotel should have parking",
    "hotel-pricerange": "price range of the hotel: cheap, moderate or expensive",
    "hotel-stars": "number of stars the hotel should have",
    "hotel-type": "kind of accommodation: hotel or guest house",
    "restaurant-area": "part of town the restaurant should be in",
    "restaurant-book day": "day of the week the table is booked for",
    "restaurant-book people": "number of people at the table",
    "restaurant-book time": "time the table is booked for",
    "restaurant-food": "kind of food the restaurant serves",
    "restaurant-name": "name of the restaurant",
    "restaurant-pricerange": "price range of the restaurant: cheap, moderate or expensive",
    "taxi-arriveby": "time by which the taxi should arrive",
    "taxi-departure": "place the taxi leaves from",
    "taxi-destination": "place the taxi goes to",
    "taxi-leaveat": "time the taxi leaves",
    "train-arriveby": "time by which the train should arrive",
    "train-book people": "number of people with train tickets",
    "train-day": "day of the week the train runs",
    "train-departure": "station the train leaves from",
    "train-destination": "station the train goes to",
    "train-leaveat": "time after which the train leaves",
}
_AREAS = ("centre", "east", "north", "south", "west")
_PRICES = ("cheap", "moderate", "expensive")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_EIGHT = ("1", "2", "3", "4", "5", "6", "7", "8")
# The values of the slots that MultiWOZ 2.2's schema.json calls categorical, spelt like TRADE's
# labels. Train stations are left out, because labels have more names than the schema.
_VALUES = {
    "attraction-area": _AREAS,
    "attraction-type": (
        "architecture",
        "boat",
        "cinema",
        "college",
        "concert hall",
        "entertainment",
        "museum",
        "multiple sports",
        "nightclub",
        "park",
        "swimming pool",
        "theatre",
    ),
    "hotel-area": _AREAS,
    "hotel-book day": _DAYS,
    "hotel-book people": _EIGHT,
    "hotel-book stay": _EIGHT,
    "hotel-internet": ("yes", "no", "free"),
    "hotel-parking": ("yes", "no", "free"),
    "hotel-pricerange": _PRICES,
    "hotel-stars": ("0", "1", "2", "3", "4", "5"),
    "hotel-type": ("hotel", "guest house"),
    "restaurant-area": _AREAS,
    "restaurant-book day": _DAYS,
    "restaurant-book people": _EIGHT,
    "restaurant-pricerange": _PRICES,
    "train-book people": ("0", *_EIGHT, "9", "10", "15"),
    "train-day": _DAYS,
}
SLOTS = {
    name: Slot(description, _VALUES.get(name, ())) for name, description in _DESCRIPTIONS.items()
}


@dataclass(frozen=True)
class MultiWoz(DialogueStateTask):
    """One release.

    With `any_of`, a prediction may match any alternative of a label "a|b". By default it must
    equal the whole string.
    """

    any_of: bool = scoring_option(False)

    version: ClassVar[str]

    @property
    def name(self) -> str:
        return f"multiwoz{self.version.replace('.', '')}"

    @property
    def slots(self) -> Mapping[str, Slot]:
        return SLOTS

    @property
    def data_policy(self) -> dict[str, str]:
        return {
            "data": f"MultiWOZ {self.version}; dialogues with an odd number of utterances, one of "
            "over 50 tokens or one not in ASCII left out, as TRADE does",
            "normalisation": "labels by TRADE's normalize and fix_general_label_error; "
            "predictions as they are",
            "|": (
                "any one alternative of the label is right"
                if self.any_of
                else "the label's whole string is required"
            ),
        }

    def right_values(self, subtask: Subtask, target: str) -> tuple[str, ...]:
        return (target, *target.split("|")) if self.any_of else (target,)

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """One example for each user turn, in the order of the file.

        Raises MissingData for a missing split, naming the present files, and UserError for a
        malformed file, naming the dialogue and the turn.
        """
        check_split(split)
        source = SourceFiles(path)
        return self._examples(source, split)

    def _examples(self, source: SourceFiles, split: str) -> Iterator[Example]:
        identifiers: set[str] = set()
        for dialogue in dialogues(
            source, split, slots=SLOTS, split_compounds=self.version == "2.4"
        ):
            if dialogue.identifier in identifiers:
                raise UserError(f"{dialogue.where}: a second dialogue has this name")
            identifiers.add(dialogue.identifier)
            utterances: list[tuple[str, str]] = []
            for number, turn in enumerate(dialogue.turns):
                utterances += [("system", turn.system), ("user", turn.user)]
                yield self.example(
                    f"{dialogue.identifier}:{number}", document_text(utterances), turn.state
                )
        if not identifiers:
            raise UserError(f"{source.path}: the split {split!r} has no dialogue")


class MultiWoz20(MultiWoz):
    version = "2.0"


class MultiWoz21(MultiWoz):
    version = "2.1"


class MultiWoz23(MultiWoz):
    version = "2.3"


class MultiWoz24(MultiWoz):
    version = "2.4"

"""MultiWOZ 2.1 and 2.4 in the layout that TRADE's create_data.py writes.

A directory or a .zip with train_dials.json, dev_dials.json and test_dials.json:
[{"dialogue_idx": ..., "dialogue": [{"system_transcript": ..., "transcript": ..., "turn_idx": 0,
"belief_state": [{"slots": [["hotel-area", "north"]], "act": "inform"}]}]}], where the system's
utterance precedes the user's and the belief state is cumulative.
"""

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pid_jax.data.examples import Example
from pid_jax.errors import UserError
from pid_jax.tasks.dialogue_state import NONE, DialogueStateTask, document_text
from pid_jax.tasks.multiwoz_labels import corrected_label
from pid_jax.tasks.task import check_split

DESCRIPTIONS = {
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

# In the data, but not among the five domains that are scored.
_UNTRACKED_DOMAINS = ("bus", "hospital", "police")
# An encrypted member of a zip is a RuntimeError, an unknown compression its subclass.
_UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_FILES = {
    "train": "train_dials.json",
    "validation": "dev_dials.json",
    "test": "test_dials.json",
}


class _MultiWoz(DialogueStateTask):
    """One release. The layout does not say which release it holds, so the task's name does."""

    version: str

    @property
    def name(self) -> str:
        return f"multiwoz{self.version.replace('.', '')}"

    @property
    def descriptions(self) -> Mapping[str, str]:
        return DESCRIPTIONS

    @property
    def data_policy(self) -> dict[str, str]:
        return {
            "data": f"MultiWOZ {self.version}, TRADE layout",
            "normalisation": "labels by TRADE's fix_general_label_error; predictions as they are",
        }

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """One example for each user turn, in the order of the file.

        Raises UserError for a missing split, naming those that are there, and for a malformed
        file, naming the dialogue and the turn.
        """
        check_split(split)
        if path is None or str(path) == "":
            raise UserError(f"task {self.name} reads a directory or a .zip: its path is not set")
        source, content = _split_content(Path(path), split)
        return self._examples(source, content)

    def _examples(self, source: str, content: bytes) -> Iterator[Example]:
        try:
            dialogues = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: not JSON in UTF-8: {error}") from error
        if not isinstance(dialogues, list) or not dialogues:
            raise UserError(f"{source}: expected a list of dialogues, with at least one")

        identifiers: set[str] = set()
        for number, dialogue in enumerate(dialogues):
            where = f"{source}, dialogue number {number + 1}"
            identifier = _field(dialogue, "dialogue_idx", str, where)
            where = f"{source}, dialogue {identifier}"
            if identifier in identifiers:
                raise UserError(f"{where}: a second dialogue has this dialogue_idx")
            identifiers.add(identifier)

            utterances: list[tuple[str, str]] = []
            for turn_number, turn in enumerate(_field(dialogue, "dialogue", list, where)):
                turn_where = f"{where}, turn {turn_number}"
                utterances += [
                    ("system", _field(turn, "system_transcript", str, turn_where)),
                    ("user", _field(turn, "transcript", str, turn_where)),
                ]
                yield self.example(
                    f"{identifier}:{turn_number}",
                    document_text(utterances),
                    _state(_field(turn, "belief_state", list, turn_where), turn_where),
                )


class MultiWoz21(_MultiWoz):
    version = "2.1"


class MultiWoz24(_MultiWoz):
    version = "2.4"


def _state(belief_state: list[Any], where: str) -> dict[str, str]:
    state = {}
    for entry in belief_state:
        for pair in _field(entry, "slots", list, f"{where}, belief_state"):
            if not (
                isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
            ):
                raise UserError(f"{where}: expected [slot, value] of two strings, got {pair!r}")
            slot, value = pair
            if slot.split("-")[0] in _UNTRACKED_DOMAINS:
                continue
            if slot not in DESCRIPTIONS:
                raise UserError(
                    f"{where}: unknown slot {slot!r}; MultiWOZ has {', '.join(DESCRIPTIONS)}"
                )
            state[slot] = corrected_label(slot, value)
    return {slot: value for slot, value in state.items() if value != NONE}


def _field(entry: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object, got {type(entry).__name__}")
    if key not in entry:
        raise UserError(f"{where}: {key!r} is missing (is this the TRADE layout?)")
    if not isinstance(entry[key], kind):
        raise UserError(
            f"{where}: {key!r} must be a {kind.__name__}, got {type(entry[key]).__name__}"
        )
    return entry[key]


def _split_content(path: Path, split: str) -> tuple[str, bytes]:
    """The split's file, as a name for messages and its bytes.

    A zip is only ever read in memory: nothing in it is written anywhere.
    """
    try:
        if path.is_dir():
            files = [file for file in path.rglob("*_dials.json") if file.is_file()]
            name = _only_match([file.relative_to(path).as_posix() for file in files], path, split)
            return str(path / name), (path / name).read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = _only_match(archive.namelist(), path, split)
                return f"{path}/{name}", archive.read(name)
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    raise UserError(f"{path}: expected a directory or a .zip in the TRADE layout")


def _only_match(names: Iterable[str], path: Path, split: str) -> str:
    """The one name whose last part is the split's file name."""
    candidates = [name for name in names if not name.startswith("__MACOSX/")]
    matches = [name for name in candidates if PurePosixPath(name).name == _FILES[split]]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"{path}: {_FILES[split]} is there more than once: {', '.join(matches)}")
    present = [
        f"{other} ({file})"
        for other, file in _FILES.items()
        if any(PurePosixPath(name).name == file for name in candidates)
    ]
    raise UserError(
        f"{path}: the split {split!r} ({_FILES[split]}) is not there; "
        f"it has {', '.join(present) or 'no split at all'}"
    )

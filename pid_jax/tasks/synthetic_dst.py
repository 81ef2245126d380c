"""Synthetic dialogues about a hotel, a restaurant and a taxi, with their states.

The dialogues need no download and no licence, and suffice to train a small model from scratch.
The language (`synthetic_language.py`) is small and unambiguous. The dialogues have the typical
difficulties of dialogue states: values that are spread over several turns, corrected, offered
and accepted, taken from an earlier domain, or declared unimportant.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from zlib import crc32

from pid_jax.data.examples import Example
from pid_jax.errors import UserError
from pid_jax.tasks import synthetic_language as language
from pid_jax.tasks.dialogue_state import DONTCARE, DialogueStateTask, Slot, document_text
from pid_jax.tasks.task import check_split

# The domains of a dialogue in order, and their weights. A taxi comes last, because it may refer
# to the hotel or restaurant before it.
_ITINERARIES = {
    ("hotel",): 2,
    ("restaurant",): 2,
    ("taxi",): 1,
    ("hotel", "restaurant"): 2,
    ("restaurant", "hotel"): 2,
    ("hotel", "taxi"): 2,
    ("restaurant", "taxi"): 2,
    ("hotel", "restaurant", "taxi"): 1,
    ("restaurant", "hotel", "taxi"): 1,
}
_MAX_TURNS = 4
# The split of a dialogue, by a hash of its first turns: 6 of 8 are training dialogues.
_SPLIT_OF_HASH = ("train",) * 6 + ("validation", "test")


@dataclass(frozen=True)
class SyntheticDialogueState(DialogueStateTask):
    """Dialogues drawn from `seed`, the same on every machine.

    A hash of a dialogue's first two user turns determines its split. So no document from the
    second turn on is in two splits, even with different seeds. Raises UserError for a number of
    dialogues below 1.
    """

    seed: int = 0
    train_dialogues: int = 10_000
    validation_dialogues: int = 200
    test_dialogues: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("train_dialogues", "validation_dialogues", "test_dialogues"):
            size = getattr(self, option)
            if not isinstance(size, int) or size < 1:
                raise UserError(f"task option {option}={size!r}: it must be an integer above 0")

    @property
    def name(self) -> str:
        return "synthetic_dst"

    @property
    def slots(self) -> Mapping[str, Slot]:
        return {name: Slot(text) for name, text in language.DESCRIPTIONS.items()}

    @property
    def data_policy(self) -> dict[str, str]:
        return {"data": f"synthetic_dst, seed {self.seed}", "normalisation": "none needed"}

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """One example for each user turn. Raises UserError unless `path` is None or ""."""
        check_split(split)
        if path is not None and str(path) != "":
            raise UserError(f"synthetic_dst is generated and reads no file: got path {path}")
        return self._examples(split)

    def _examples(self, split: str) -> Iterator[Example]:
        rng = random.Random(f"{self.seed} {split}")
        for index in range(getattr(self, f"{split}_dialogues")):
            dialogue = _Dialogue(rng)
            while _split_of(dialogue) != split:
                dialogue = _Dialogue(rng)
            for turn, (length, state) in enumerate(dialogue.user_turns):
                yield self.example(
                    f"{split}-{index:05d}:{turn}",
                    document_text(dialogue.utterances[:length]),
                    state,
                )


def _split_of(dialogue: "_Dialogue") -> str:
    first_turns = document_text(dialogue.utterances[: dialogue.user_turns[1][0]])
    return _SPLIT_OF_HASH[crc32(first_turns.encode()) % len(_SPLIT_OF_HASH)]


class _Dialogue:
    """One random dialogue of 2 to `_MAX_TURNS` user turns.

    `utterances` are pairs of speaker and text. `user_turns` has, for each user turn, the number of
    utterances up to and including it, and the cumulative state after it.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.utterances: list[tuple[str, str]] = []
        self.user_turns: list[tuple[int, dict[str, str]]] = []
        self.state: dict[str, str] = {}
        self.latest_slot = ""
        self.corrected: set[str] = set()

        (itinerary,) = rng.choices(list(_ITINERARIES), weights=list(_ITINERARIES.values()))
        for index, domain in enumerate(itinerary):
            self._open(domain, itinerary[:index])
            domains_to_come = len(itinerary) - index - 1
            turns_to_spare = _MAX_TURNS - len(self.user_turns) - domains_to_come
            extra_turns = rng.randint(0 if len(itinerary) > 1 else 1, 2)
            for _ in range(min(extra_turns, turns_to_spare)):
                self._continue(domain, taxi_follows="taxi" in itinerary[index + 1 :])

    def _open(self, domain: str, earlier: tuple[str, ...]) -> None:
        """The user starts a domain and may reuse the area of an earlier one."""
        rng = self.rng
        if self.utterances:
            self._system(rng.choice(language.CLOSINGS), confirming=self.latest_slot)
        opening = rng.choice(language.OPENINGS[domain])
        for other in earlier:
            area = self.state.get(f"{other}-area", DONTCARE)
            if domain != "taxi" and area != DONTCARE and rng.random() < 0.4:
                opening = rng.choice(language.SAME_AREA[domain, other])
                self._set(f"{domain}-area", area)
        fields = {field for _, field, _, _ in Formatter().parse(opening) if field}
        opening = opening.format_map({slot: self._value(slot) for slot in sorted(fields)})
        open_slots = [
            slot
            for slot in language.INDIFFERENT
            if slot.startswith(f"{domain}-") and slot not in self.state
        ]
        if open_slots and f"{domain}-name" not in self.state and rng.random() < 0.15:
            slot = rng.choice(open_slots)
            opening += f" , {rng.choice(language.INDIFFERENT[slot])}"
            self._set(slot, DONTCARE)
        transition = rng.choice(language.TRANSITIONS) if earlier else ""
        self._user(f"{transition} {opening}")

    def _continue(self, domain: str, taxi_follows: bool) -> None:
        """The user answers a question, decides on an offer, or corrects a value."""
        unknown = [s for s in _slots_of(domain, language.QUESTIONS) if s not in self.state]
        correctable = [
            s
            for s in _slots_of(domain, language.CORRECTIONS)
            if s in self.state and s not in self.corrected
        ]
        name = f"{domain}-name"

        moves: list[tuple[Callable[[str], None], str]] = []
        weights = []
        if name in language.OFFERS and name not in self.state:
            moves.append((self._decide_on_offer, name))
            # A taxi can refer to a name only if the state has one.
            weights.append(3 if taxi_follows else 1)
        if unknown:
            moves.append((self._answer, self.rng.choice(unknown)))
            weights.append(1)
        if correctable:
            moves.append((self._correct, self.rng.choice(correctable)))
            weights.append(1)
        # Never empty, because a domain has more slots than a dialogue has turns.
        ((move, slot),) = self.rng.choices(moves, weights)
        move(slot)

    def _answer(self, slot: str) -> None:
        self._system(self.rng.choice(language.QUESTIONS[slot]))
        if slot in language.INDIFFERENT and self.rng.random() < 0.25:
            self._set(slot, DONTCARE)
            self._user(self.rng.choice(language.INDIFFERENT_ANSWERS))
        else:
            self._user(self.rng.choice(language.ANSWERS[slot]).format(self._value(slot)))

    def _decide_on_offer(self, slot: str) -> None:
        rng = self.rng
        offered = rng.choice(language.VALUES[slot])
        self._system(rng.choice(language.OFFERS[slot]).format(offered))
        decision = rng.random()
        if decision < 0.6:
            self._set(slot, offered)
            self._user(rng.choice(language.ACCEPTANCES))
        elif decision < 0.8:
            self._user(rng.choice(language.REFUSALS))
        else:
            other = rng.choice([name for name in language.VALUES[slot] if name != offered])
            self._set(slot, other)
            self._user(rng.choice(language.REPLACEMENTS).format(other))

    def _correct(self, slot: str) -> None:
        self.corrected.add(slot)
        self._system(self.rng.choice(language.CLOSINGS), confirming=slot)
        self._user(self.rng.choice(language.CORRECTIONS[slot]).format(self._value(slot)))

    def _value(self, slot: str) -> str:
        """Sets the slot to a new value, and returns the user's phrase for it."""
        rng = self.rng
        # The destination of a taxi differs from its departure.
        taken = {self.state.get(slot)}
        if slot in ("taxi-departure", "taxi-destination"):
            taken |= {self.state.get("taxi-departure"), self.state.get("taxi-destination")}
            named = [
                domain
                for domain in language.REFERENCES
                if self.state.get(f"{domain}-name") not in taken | {None}
            ]
            if named and rng.random() < 0.6:
                domain = rng.choice(named)
                self._set(slot, self.state[f"{domain}-name"])
                return rng.choice(language.REFERENCES[domain])
        value = rng.choice([value for value in language.VALUES[slot] if value not in taken])
        self._set(slot, value)
        return rng.choice(language.PARAPHRASES.get(value, (value,)))

    def _set(self, slot: str, value: str) -> None:
        self.state[slot] = value
        self.latest_slot = slot

    def _user(self, text: str) -> None:
        self.utterances.append(("user", _with_articles(text)))
        self.user_turns.append((len(self.utterances), dict(self.state)))

    def _system(self, text: str, confirming: str = "") -> None:
        """Adds a system utterance, which may first repeat the value of the slot `confirming`."""
        opening = ""
        value = self.state.get(confirming, DONTCARE)
        if confirming in language.CONFIRMATIONS and value != DONTCARE and self.rng.random() < 0.4:
            opening = self.rng.choice(language.CONFIRMATIONS[confirming]).format(value)
        elif self.rng.random() < 0.4:
            opening = self.rng.choice(language.ACKNOWLEDGEMENTS)
        self.utterances.append(("system", _with_articles(f"{opening} {text}")))


def _slots_of(domain: str, table: Mapping[str, object]) -> list[str]:
    return [slot for slot in table if slot.startswith(f"{domain}-")]


def _with_articles(text: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", text)

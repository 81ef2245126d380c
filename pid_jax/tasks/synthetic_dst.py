"""Synthetic dialogues about a hotel, a restaurant and a taxi, with their states.

No download, no licence, and as many dialogues as are asked for: enough to train a small model
from scratch and see prompt-in-decoder work. The language (`synthetic_language.py`) is small and
unambiguous; what has to be learnt is what makes dialogue states hard: values spread over several
turns, corrected, offered and accepted, carried over from one domain to the next, or declared
unimportant.
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

# Which domains a dialogue goes through, and how often. A taxi comes last, for it may refer to
# the places before it.
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
# Of 8 dialogues, by a hash of how they begin, 6 may be trained on.
_SPLIT_OF_HASH = ("train",) * 6 + ("validation", "test")


@dataclass(frozen=True)
class SyntheticDialogueState(DialogueStateTask):
    """Dialogues drawn from `seed`, the same on every machine.

    Splits cannot overlap, whatever the seeds: a hash of a dialogue's first two user turns says
    which split it may appear in, so no document from the second turn on is in two splits.
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
        """One example for each user turn. There is no file: `path` is None or ""."""
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
    beginning = document_text(dialogue.utterances[: dialogue.user_turns[1][0]])
    return _SPLIT_OF_HASH[crc32(beginning.encode()) % len(_SPLIT_OF_HASH)]


class _Dialogue:
    """One random dialogue, of 2 to `_MAX_TURNS` user turns, written as it is constructed.

    `utterances` are (speaker, text); `user_turns` has, for each user turn, how many utterances
    there are up to and including it, and the cumulative state after it.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.utterances: list[tuple[str, str]] = []
        self.user_turns: list[tuple[int, dict[str, str]]] = []
        self.state: dict[str, str] = {}
        self.latest_slot = ""
        self.corrected: set[str] = set()

        (itinerary,) = rng.choices(list(_ITINERARIES), weights=list(_ITINERARIES.values()))
        for place, domain in enumerate(itinerary):
            self._open(domain, itinerary[:place])
            domains_to_come = len(itinerary) - place - 1
            turns_to_spare = _MAX_TURNS - len(self.user_turns) - domains_to_come
            extra_turns = rng.randint(0 if len(itinerary) > 1 else 1, 2)
            for _ in range(min(extra_turns, turns_to_spare)):
                self._continue(domain, taxi_follows="taxi" in itinerary[place + 1 :])

    def _open(self, domain: str, earlier: tuple[str, ...]) -> None:
        """The user turns to a domain, perhaps taking over an area from an earlier one."""
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
            # A taxi is the more interesting for having somewhere named to go.
            weights.append(3 if taxi_follows else 1)
        if unknown:
            moves.append((self._answer, self.rng.choice(unknown)))
            weights.append(1)
        if correctable:
            moves.append((self._correct, self.rng.choice(correctable)))
            weights.append(1)
        # Never empty: a domain has more slots than a dialogue has turns to correct them in.
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
        """Gives the slot a new value, and returns what the user calls it."""
        rng = self.rng
        # A taxi does not go where it comes from.
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
        """The system speaks; now and then it first repeats the value of the slot `confirming`."""
        beginning = ""
        value = self.state.get(confirming, DONTCARE)
        if confirming in language.CONFIRMATIONS and value != DONTCARE and self.rng.random() < 0.4:
            beginning = self.rng.choice(language.CONFIRMATIONS[confirming]).format(value)
        elif self.rng.random() < 0.4:
            beginning = self.rng.choice(language.ACKNOWLEDGEMENTS)
        self.utterances.append(("system", _with_articles(f"{beginning} {text}")))


def _slots_of(domain: str, table: Mapping[str, object]) -> list[str]:
    return [slot for slot in table if slot.startswith(f"{domain}-")]


def _with_articles(text: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", text)

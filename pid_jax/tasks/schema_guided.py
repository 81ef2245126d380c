"""Schema-Guided Dialogue, and MultiWOZ 2.2, which has the same layout.

The layout is a directory or a .zip with folders train, dev and test of dialogues_001.json, ...:

    [{"dialogue_id": "1_00000", "turns": [
      {"speaker": "USER", "utterance": "...", "frames": [
        {"service": "Restaurants_2", "state": {"slot_values": {"time": ["11:30 am", ...]}}}]},
      {"speaker": "SYSTEM", "utterance": "...", "frames": []}, ...]}, ...]

and a schema.json in each of the folders or in their parent:

    [{"service_name": "Restaurants_2", "slots": [
      {"name": "time", "description": "...", "is_categorical": false}, ...]}, ...]

States are cumulative. The values of a slot are spellings of one value. Each of them is correct.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import MissingData, UserError
from pid_jax.metrics.joint_goal_accuracy import ABSENT_VALUES
from pid_jax.metrics.schema_guided import schema_guided
from pid_jax.tasks.dialogue_state import DialogueStateTask, Slot, document_text
from pid_jax.tasks.fields import checked, field, identifier_of
from pid_jax.tasks.source_files import SourceFiles
from pid_jax.tasks.task import Predictions, Report, check_split, prediction_for, target_of

_FOLDERS = {"train": "train", "validation": "dev", "test": "test"}
_FILES = "dialogues_*.json"

# Traits of subtasks: the slot is categorical, the training split has (lacks) the service.
CATEGORICAL, SEEN, UNSEEN = "categorical", "seen", "unseen"
OFFICIAL = "official_joint_goal_accuracy"
PER_SERVICE = "official joint goal accuracy per service"

# From service to its slots by name. A slot's name is "service-slot".
Schema = Mapping[str, Mapping[str, Slot]]


class SchemaGuidedTask(DialogueStateTask):
    """A task in the layout of Schema-Guided Dialogue, with slot descriptions from its schema."""

    @property
    def slots(self) -> Mapping[str, Slot]:
        return {}

    reader_version: ClassVar[int] = 2
    """From version 2 on, subtasks have traits."""

    asks_all_services: ClassVar[bool]
    """Whether a turn has prompts for all services, or only for those in its frames."""

    @abstractmethod
    def tracked(self, schema: Schema, where: str) -> Schema:
        """The part of the schema whose slots are tracked. `where` is its file in messages.

        Raises UserError if the schema lacks a tracked slot.
        """

    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]:
        """One example for each user turn with tracked slots, in the order of the files.

        Raises MissingData for a missing split, naming the present files, and UserError for a
        malformed file, naming the dialogue and the turn.
        """
        check_split(split)
        source = SourceFiles(path)
        names = _dialogue_files(source, split)
        schema_name = _schema_file(source, PurePosixPath(names[0]).parent)
        schema = _read_schema(source, schema_name, _seen(source, schema_name, split))
        tracked = self.tracked(schema, source.where(schema_name))
        return self._examples(source, names, schema, tracked)

    def _examples(
        self, source: SourceFiles, names: list[str], schema: Schema, tracked: Schema
    ) -> Iterator[Example]:
        identifiers: set[str] = set()
        for name in names:
            for number, dialogue in enumerate(source.read_json_list(name), start=1):
                where = f"{source.where(name)}, dialogue number {number}"
                identifier = identifier_of(dialogue, "dialogue_id", where)
                where = f"{source.where(name)}, dialogue {identifier}"
                if identifier in identifiers:
                    raise UserError(f"{where}: a second dialogue has this dialogue_id")
                identifiers.add(identifier)
                yield from self._turns(identifier, dialogue, schema, tracked, where)
        if not identifiers:
            raise UserError(f"{source.path}: there is no dialogue in {', '.join(names)}")

    def _turns(
        self, identifier: str, dialogue: Any, schema: Schema, tracked: Schema, where: str
    ) -> Iterator[Example]:
        utterances: list[tuple[str, str]] = []
        for number, turn in enumerate(field(dialogue, "turns", list, where)):
            turn_where = f"{where}, turn {number}"
            speaker = field(turn, "speaker", str, turn_where)
            if speaker not in ("USER", "SYSTEM"):
                raise UserError(
                    f'{turn_where}: "speaker" must be "USER" or "SYSTEM", got {speaker!r}'
                )
            utterances.append((speaker.lower(), field(turn, "utterance", str, turn_where)))
            if speaker == "SYSTEM":
                continue
            services, state = _state(turn, schema, turn_where)
            slots_of_turn = {
                name: slot
                for service, slots in tracked.items()
                if self.asks_all_services or service in services
                for name, slot in slots.items()
            }
            if slots_of_turn:
                yield self.example(
                    f"{identifier}:{number}", document_text(utterances), state, slots_of_turn
                )


class SchemaGuidedDialogue(SchemaGuidedTask):
    """Schema-Guided Dialogue (Rastogi et al. 2020, arXiv 1909.05855)."""

    asks_all_services = False

    @property
    def name(self) -> str:
        return "sgd"

    @property
    def data_policy(self) -> dict[str, str]:
        return {
            "data": "Schema-Guided Dialogue; a turn is scored over all slots of the services in "
            "its frames",
            "normalisation": "labels in lower case; predictions as they are",
            "several values": "any listed one is right, by exact string",
        }

    def tracked(self, schema: Schema, where: str) -> Schema:
        return schema

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """Adds the official scores to the exact-string scores of dialogue-state tasks.

        "official_joint_goal_accuracy" and "official_average_goal_accuracy" in [0, 1] are those of
        `pid_jax.metrics.schema_guided` over all frames. The suffixes "_seen_services" and
        "_unseen_services" denote frames of services in and not in the training split. A table has
        the joint goal accuracy of each service.
        """
        report = super().score(examples, predictions)
        subtasks = [subtask for example in examples for subtask in example.subtasks]
        if any(subtask.traits is None for subtask in subtasks):
            rule = (
                "left out: these examples were prepared by an earlier version; prepare them again "
                "with python -m pid_jax.data.prepare"
            )
            return replace(report, policy={**report.policy, "official rule": rule})
        frames = [frame for example in examples for frame in self._frames(example, predictions)]
        metrics = _official(frames)
        known = False
        for trait in (SEEN, UNSEEN):
            of_trait = [frame for frame in frames if trait in frame.traits]
            known |= bool(of_trait)
            metrics |= _official(of_trait, f"_{trait}_services")
        services = sorted({frame.service for frame in frames})
        policy = {
            "official rule": "the mean over frames, one service at one turn each, of the product "
            "over slots; a non-categorical slot scores its similarity to the most similar listed "
            "value (words sorted, rapidfuzz), in hundredths, a categorical one by exact string; "
            "labels in lower case",
            "seen services": "those in the training split's schema.json"
            if known
            else "not known: there is no schema.json of the training split",
        }
        table = {
            service: _official([f for f in frames if f.service == service])[OFFICIAL]
            for service in services
        }
        return Report(
            metrics={**report.metrics, **metrics},
            policy={**report.policy, **policy},
            tables={**report.tables, PER_SERVICE: table},
        )

    def _frames(self, example: Example, predictions: Predictions) -> Iterator["_Frame"]:
        by_service: dict[str, list[Subtask]] = {}
        for subtask in example.subtasks:
            by_service.setdefault(subtask.id.partition("-")[0], []).append(subtask)
        for service, subtasks in by_service.items():
            yield _Frame(
                service,
                {s.id: prediction_for(predictions, example.id, s.id).strip() for s in subtasks},
                {s.id: self.right_values(s, target_of(example, s)) for s in subtasks},
                {s.id for s in subtasks if CATEGORICAL in (s.traits or ())},
                subtasks[0].traits or (),
            )


class _Frame(NamedTuple):
    """Predictions and references for one service at one user turn."""

    service: str
    predicted: dict[str, str]
    gold: dict[str, tuple[str, ...]]
    categorical: set[str]
    traits: tuple[str, ...]


def _official(frames: Sequence[_Frame], ending: str = "") -> dict[str, float]:
    if not frames:
        return {}
    scores = schema_guided(
        [frame.predicted for frame in frames],
        [frame.gold for frame in frames],
        categorical=set().union(*(frame.categorical for frame in frames)),
    )
    return {f"official_{name}{ending}": score for name, score in scores.items()}


class MultiWoz22(SchemaGuidedTask):
    """MultiWOZ 2.2. Tracks 35 of the schema's 61 slots, each with a prompt at every turn."""

    asks_all_services = True

    @property
    def name(self) -> str:
        return "multiwoz22"

    @property
    def data_policy(self) -> dict[str, str]:
        return {
            "data": f"MultiWOZ 2.2; {len(MULTIWOZ_22_SLOTS)} slots",
            "normalisation": "labels in lower case; predictions as they are",
            "several values": "any listed one is right, by exact string",
        }

    def tracked(self, schema: Schema, where: str) -> Schema:
        missing = MULTIWOZ_22_SLOTS.difference(*schema.values())
        if missing:
            raise UserError(
                f"{where}: there is no slot {', '.join(sorted(missing))}: is it MultiWOZ 2.2's?"
            )
        return {
            service: {name: slot for name, slot in slots.items() if name in MULTIWOZ_22_SLOTS}
            for service, slots in schema.items()
        }


# From the README of MultiWOZ 2.2.
MULTIWOZ_22_SLOTS = frozenset(
    f"{domain}-{slot}"
    for domain, slots in {
        "attraction": "area name type",
        "bus": "day departure destination leaveat",
        "hospital": "department",
        "hotel": "area bookday bookpeople bookstay internet name parking pricerange stars type",
        "restaurant": "area bookday bookpeople booktime food name pricerange",
        "taxi": "arriveby departure destination leaveat",
        "train": "arriveby bookpeople day departure destination leaveat",
    }.items()
    for slot in slots.split()
)


def _dialogue_files(source: SourceFiles, split: str) -> list[str]:
    folder = _FOLDERS[split]
    names = [
        name
        for name in source.names
        if PurePosixPath(name).parent.name == folder and fnmatch(PurePosixPath(name).name, _FILES)
    ]
    if not names:
        raise MissingData(f"{source.path}: there is no {folder}/{_FILES}; {source.contents()}")
    folders = sorted({str(PurePosixPath(name).parent) for name in names})
    if len(folders) > 1:
        raise UserError(
            f"{source.path}: {folder}/{_FILES} occurs more than once: {', '.join(folders)}; "
            "name the folder that is meant"
        )
    return names


def _schema_file(source: SourceFiles, folder: PurePosixPath) -> str:
    candidates = [str(parent / "schema.json") for parent in (folder, folder.parent)]
    for name in candidates:
        if name in source.names:
            return name
    raise UserError(f"{source.path}: there is no {' or '.join(candidates)}; {source.contents()}")


def _seen(source: SourceFiles, schema_name: str, split: str) -> set[str] | None:
    """The services of the training split, or None without its schema."""
    name = schema_name
    if split != "train":
        name = str(PurePosixPath(schema_name).parent.parent / _FOLDERS["train"] / "schema.json")
        if PurePosixPath(schema_name).parent.name != _FOLDERS[split] or name not in source.names:
            return None
    return {
        field(entry, "service_name", str, f"{source.where(name)}, service number {number}")
        for number, entry in enumerate(source.read_json_list(name), start=1)
    }


def _read_schema(source: SourceFiles, name: str, seen: set[str] | None) -> Schema:
    schema: dict[str, dict[str, Slot]] = {}
    for number, entry in enumerate(source.read_json_list(name), start=1):
        where = f"{source.where(name)}, service number {number}"
        service = field(entry, "service_name", str, where)
        where = f"{source.where(name)}, service {service}"
        if service in schema:
            raise UserError(f"{where}: the service occurs twice")
        slots = schema[service] = {}
        for slot in field(entry, "slots", list, where):
            full_name = _full_name(service, field(slot, "name", str, f'{where}, "slots"'))
            known = () if seen is None else (SEEN if service in seen else UNSEEN,)
            slots[full_name] = _slot(slot, known, f"{where}, slot {full_name}")
    return schema


def _slot(entry: Any, traits: tuple[str, ...], where: str) -> Slot:
    values: list[str] = []
    if "is_categorical" in entry and field(entry, "is_categorical", bool, where):
        traits = (CATEGORICAL, *traits)
        values = [
            _normalized(checked(value, str, "a possible value", where))
            for value in field(entry, "possible_values", list, where)
        ]
    present = [value for value in values if value and value not in ABSENT_VALUES]
    return Slot(field(entry, "description", str, where), tuple(dict.fromkeys(present)), traits)


def _state(turn: Any, schema: Schema, where: str) -> tuple[set[str], dict[str, list[str]]]:
    """The services of a user turn's frames, and the values of its slots."""
    services: set[str] = set()
    state = {}
    for frame in field(turn, "frames", list, where):
        service = field(frame, "service", str, f"{where}, frames")
        if service not in schema:
            raise UserError(f"{where}: the schema has no service {service!r}")
        services.add(service)
        frame_where = f"{where}, frame {service}"
        slot_values = field(
            field(frame, "state", dict, frame_where), "slot_values", dict, frame_where
        )
        for key in slot_values:
            slot = _full_name(service, key)
            if slot not in schema[service]:
                raise UserError(f"{frame_where}: the schema has no slot {key!r}")
            values = [
                _normalized(checked(value, str, f"a value of {key!r}", frame_where))
                for value in field(slot_values, key, list, frame_where)
            ]
            present = [value for value in dict.fromkeys(values) if value not in ABSENT_VALUES]
            if present:
                state[slot] = present
    return services, state


def _full_name(service: str, slot: str) -> str:
    """ "Restaurants_2-time". In MultiWOZ 2.2 the slot's name includes the service."""
    return slot if slot.startswith(f"{service}-") else f"{service}-{slot}"


def _normalized(value: str) -> str:
    return " ".join(value.lower().split())

import itertools
import json
import zipfile
from dataclasses import replace

import pytest

from pid_jax import tasks
from pid_jax.errors import UserError
from pid_jax.tasks.schema_guided import MULTIWOZ_22_SLOTS
from tests.helpers import mutations

SCHEMA = [
    {
        "service_name": "Restaurants_2",
        "slots": [
            {"name": "time", "description": "Tentative time of the reservation"},
            {
                "name": "location",
                "description": "City of the restaurant",
                "is_categorical": True,
                "possible_values": ["Oakland", "San Jose", "oakland"],
            },
        ],
    },
    {"service_name": "Alarm_1", "slots": [{"name": "alarm_time", "description": "Alarm's time"}]},
]


def user(utterance, **values_of_service):
    frames = [
        {"service": service, "state": {"active_intent": "NONE", "slot_values": values}}
        for service, values in values_of_service.items()
    ]
    return {"speaker": "USER", "utterance": utterance, "frames": frames}


SYSTEM = {"speaker": "SYSTEM", "utterance": "When?", "frames": [{"service": "Restaurants_2"}]}
DIALOGUE = {
    "dialogue_id": "1_00000",
    "services": ["Restaurants_2", "Alarm_1"],
    "turns": [
        user("A table in San Jose", Restaurants_2={"location": ["San  Jose"]}),
        SYSTEM,
        user(
            "Half past 11",
            Restaurants_2={"location": ["San Jose"], "time": ["11:30 am", "Half past 11"]},
        ),
        user("And an alarm", Alarm_1={"alarm_time": []}),
        user("Bye"),
    ],
}


def layout(directory, dialogues=(DIALOGUE,), schema=SCHEMA, folder="test", beside=False):
    (directory / folder).mkdir(parents=True, exist_ok=True)
    for number, dialogue in enumerate(dialogues, start=1):
        path = directory / folder / f"dialogues_{number:03}.json"
        path.write_text(json.dumps([dialogue]))
    place = directory if beside else directory / folder
    (place / "schema.json").write_text(json.dumps(schema))
    return directory


def read(path, split="test", name="sgd", **options):
    return list(tasks.get(name, **options).examples(path, split))


def subtasks_of(example):
    return {subtask.id: (subtask.target, subtask.references) for subtask in example.subtasks}


@pytest.mark.parametrize("beside", [False, True])
def test_each_user_turn_asks_the_slots_of_its_services(tmp_path, beside):
    first, second, third = read(layout(tmp_path, beside=beside))
    assert first.document == "[user] a table in san jose"
    assert second.document == "[user] a table in san jose [system] when? [user] half past 11"
    assert (first.id, second.id, third.id) == ("1_00000:0", "1_00000:2", "1_00000:3")
    assert subtasks_of(first) == {
        "Restaurants_2-time": ("none", None),
        "Restaurants_2-location": ("san jose", None),
    }
    assert subtasks_of(second) == {
        "Restaurants_2-time": ("11:30 am", ("11:30 am", "half past 11")),
        "Restaurants_2-location": ("san jose", None),
    }
    assert subtasks_of(third) == {"Alarm_1-alarm_time": ("none", None)}


def test_the_schema_s_descriptions_ask(tmp_path):
    first = read(layout(tmp_path), prompts="both")[0]
    assert first.subtasks[1].prompt == "Restaurants_2-location: City of the restaurant"


def test_any_listed_value_is_right(tmp_path):
    examples = read(layout(tmp_path))
    predictions = {e.id: {s.id: s.target for s in e.subtasks} for e in examples}
    task = tasks.get("sgd")
    predictions["1_00000:2"]["Restaurants_2-time"] = "half past 11"
    assert set(task.score(examples, predictions).metrics.values()) == {1.0}
    predictions["1_00000:2"]["Restaurants_2-time"] = "11:30"
    report = task.score(examples, predictions)
    assert report.metrics["joint_goal_accuracy"] == 2 / 3
    assert report.metrics["slot_accuracy"] == 4 / 5
    assert "any listed one is right" in report.policy["several values"]


def test_files_are_read_in_order_from_a_directory_or_a_zip(tmp_path):
    second = {**DIALOGUE, "dialogue_id": "1_00001"}
    path = layout(tmp_path / "sgd", [DIALOGUE, second], folder="dev")
    expected = read(path, "validation")
    assert [example.id[:7] for example in expected] == ["1_00000"] * 3 + ["1_00001"] * 3
    with zipfile.ZipFile(tmp_path / "sgd.zip", "w") as archive:
        for file in path.rglob("*.json"):
            archive.write(file, f"sgd-master/{file.relative_to(path)}")
    assert read(tmp_path / "sgd.zip", "validation") == expected
    with pytest.raises(UserError, match=r"no test/dialogues_\*.json; it contains sgd-master/dev/"):
        read(tmp_path / "sgd.zip")


def broken(turn):
    return {**DIALOGUE, "turns": [SYSTEM, turn]}


MALFORMED = {
    'number 1: "dialogue_id" is missing': [{"turns": []}],
    "dialogue 1_00000: a second dialogue has this": [DIALOGUE, DIALOGUE],
    'dialogue 1_00000, turn 1: "speaker" must be "USER" or "SYSTEM"': [
        broken({"speaker": "BOT", "utterance": ""})
    ],
    "turn 1: the schema has no service 'Taxi_1'": [broken(user("a", Taxi_1={}))],
    "turn 1, frame Alarm_1: the schema has no slot 'day'": [
        broken(user("a", Alarm_1={"day": ["monday"]}))
    ],
    "a value of 'alarm_time' must be a string, got a number": [
        broken(user("a", Alarm_1={"alarm_time": [7]}))
    ],
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_file_is_named_with_dialogue_and_turn(tmp_path, message):
    path = layout(tmp_path, MALFORMED[message])
    with pytest.raises(UserError, match=f"dialogues_00..json.*{message}"):
        read(path)


def test_a_schema_that_is_missing_or_twice_is_an_error(tmp_path):
    path = layout(tmp_path / "twice", schema=[*SCHEMA, *SCHEMA])
    with pytest.raises(
        UserError, match=r"schema.json, service Restaurants_2: the service occurs twice"
    ):
        read(path)
    (path / "test" / "schema.json").unlink()
    with pytest.raises(UserError, match=r"there is no test/schema.json or schema.json"):
        read(path)


def test_multiwoz_2_2_tracks_35_slots_in_every_turn(tmp_path):
    slots = [*sorted(MULTIWOZ_22_SLOTS), "hotel-phone", "police-name"]
    schema = [
        {
            "service_name": domain,
            "slots": [
                {"name": slot, "description": f"the {slot}"}
                for slot in slots
                if slot.startswith(f"{domain}-")
            ],
        }
        for domain in sorted({slot.split("-")[0] for slot in slots})
    ]
    dialogue = broken(user("Hi", hotel={"hotel-area": ["north"], "hotel-phone": ["1"]}))
    (example,) = read(layout(tmp_path, [dialogue], schema), name="multiwoz22")
    assert subtasks_of(example).keys() == MULTIWOZ_22_SLOTS
    assert len(example.subtasks) == 35
    assert {s.id for s in example.subtasks if s.target != "none"} == {"hotel-area"}
    with pytest.raises(UserError, match=r"schema.json: there is no slot attraction-area"):
        read(layout(tmp_path / "other"), name="multiwoz22")


def test_mutated_files_are_refused_or_read(tmp_path):
    files = {
        "sgd/test/dialogues_001.json": json.dumps([DIALOGUE]).encode(),
        "sgd/test/dialogues_002.json": json.dumps([{**DIALOGUE, "dialogue_id": "b"}]).encode(),
        "sgd/schema.json": json.dumps(SCHEMA).encode(),
    }
    outcomes = mutations.read_mutated(read, files, tmp_path)
    assert outcomes["refused"] > 200
    assert outcomes["read"] > 20


def gold_scores_one(task, examples):
    gold = {e.id: {s.id: s.target for s in e.subtasks} for e in examples}
    return set(task.score(examples, gold).metrics.values()) == {1.0}


def test_real_2_2_samples_are_read_and_score_one(real_data, tmp_path):
    multiwoz = real_data / "multiwoz"
    schema = json.loads((multiwoz / "budzianowski/data/MultiWOZ_2.2/schema.json").read_text())
    task = tasks.get("multiwoz22")

    dialogues = json.loads(
        (multiwoz / "DialogStudio/MULTIWOZ2_2/original_examples.json").read_text()
    )
    examples = read(layout(tmp_path / "studio", dialogues, schema, "train"), "train", "multiwoz22")
    assert len(examples) == sum(t["speaker"] == "USER" for d in dialogues for t in d["turns"]) == 23
    assert gold_scores_one(task, examples)
    several = {s.references for e in examples for s in e.subtasks if s.references}
    assert several == {("12:30", "12:15"), ("02:45", "after 02:30")}

    # One dialogue of each of the release's 21 files, cut to two turns.
    path = multiwoz / "hf_datasets/multi_woz_v22/dummy/v2.2/2.2.0/dummy_data.zip"
    with zipfile.ZipFile(path) as archive:
        for folder, split, files in (
            ("train", "train", 17),
            ("dev", "validation", 2),
            ("test", "test", 2),
        ):
            samples = [
                json.loads(archive.read(name))[0]
                for name in archive.namelist()
                if f"json{folder}_" in name
            ]
            examples = read(
                layout(tmp_path / folder, samples, schema, folder, beside=True), split, "multiwoz22"
            )
            assert len(examples) == len(samples) == files
            assert gold_scores_one(task, examples)


def test_closed_holds_categorical_slots_to_the_schemas_values(tmp_path):
    example = read(layout(tmp_path), closed=True)[1]
    allowed = {subtask.id: subtask.allowed for subtask in example.subtasks}
    assert allowed == {
        "Restaurants_2-time": None,
        "Restaurants_2-location": ("oakland", "san jose", "dontcare", "none"),
    }


def test_the_official_rule_is_scored_beside_with_seen_and_unseen_services_apart(tmp_path):
    layout(tmp_path, schema=SCHEMA[:1], dialogues=(), folder="train")
    turns = [
        user("a", Restaurants_2={"time": ["11:30 am", "abxy"], "location": ["San Jose"]}),
        user("b", Alarm_1={"alarm_time": ["abc"]}),
        user("c", Restaurants_2={}),
    ]
    dialogue = {**DIALOGUE, "turns": turns}
    examples = read(layout(tmp_path, [dialogue]))
    answers = {e.id: {s.id: s.target for s in e.subtasks} for e in examples}
    first, second, _ = answers.values()
    first["Restaurants_2-time"] = "abcd"  # half of the second value
    second["Alarm_1-alarm_time"] = "abd"
    report = tasks.get("sgd").score(examples, answers)
    assert report.metrics == {
        "joint_goal_accuracy": pytest.approx(1 / 3),
        "slot_accuracy": pytest.approx(3 / 5),
        "official_joint_goal_accuracy": pytest.approx((0.5 + 0.67 + 1) / 3),
        "official_average_goal_accuracy": pytest.approx(((0.5 + 1) / 2 + 0.67) / 2),
        "official_joint_goal_accuracy_seen_services": pytest.approx((0.5 + 1) / 2),
        "official_average_goal_accuracy_seen_services": pytest.approx(0.75),
        "official_joint_goal_accuracy_unseen_services": pytest.approx(0.67),
        "official_average_goal_accuracy_unseen_services": pytest.approx(0.67),
    }
    assert report.tables["official joint goal accuracy per service"] == {
        "Alarm_1": pytest.approx(0.67),
        "Restaurants_2": pytest.approx(0.75),
    }
    assert "rapidfuzz" in report.policy["official rule"]
    # A category is right or wrong.
    first["Restaurants_2-location"] = "San Jos"
    report = tasks.get("sgd").score(examples, answers)
    assert report.metrics["official_joint_goal_accuracy_seen_services"] == 0.5


def test_without_the_training_schema_services_are_not_told_apart(tmp_path):
    examples = read(layout(tmp_path))
    answers = {e.id: {s.id: s.target for s in e.subtasks} for e in examples}
    report = tasks.get("sgd").score(examples, answers)
    assert not [name for name in report.metrics if name.endswith("_services")]
    assert report.policy["seen services"].startswith("not known")
    old = [
        replace(e, subtasks=tuple(replace(s, traits=None) for s in e.subtasks)) for e in examples
    ]
    report = tasks.get("sgd").score(old, answers)
    assert report.metrics.keys() == {"joint_goal_accuracy", "slot_accuracy"}
    assert report.policy["official rule"].startswith("left out")


def test_real_sgd_has_15_services_in_test_that_training_lacks(real_data):
    task = tasks.get("sgd")
    path = real_data / "sgd/sgd_partial.zip"
    examples = list(itertools.islice(task.examples(path, "test"), 20_000))
    services = {s.id.partition("-")[0]: s.traits[-1] for e in examples for s in e.subtasks}
    # SOURCES: 21 services in the test split's schema.json, of which 15 are not in training's.
    assert set(services.values()) == {"seen", "unseen"}
    assert sum(trait == "unseen" for trait in services.values()) <= 15
    answers = {e.id: {s.id: s.target for s in e.subtasks} for e in examples}
    assert set(task.score(examples, answers).metrics.values()) == {1.0}

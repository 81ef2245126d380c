"""MultiWOZ in TRADE's layout and as released: examples, states, errors, published sizes."""

import io
import json
import zipfile

import pytest

from pid_jax import tasks
from pid_jax.errors import UserError
from pid_jax.scoring import negative_baseline
from pid_jax.tasks.multiwoz import SLOTS as TRACKED
from tests.helpers import mutations

# The 30 slots of TRADE, by domain.
SLOTS = {
    "attraction": ["area", "name", "type"],
    "hotel": [
        "area", "book day", "book people", "book stay", "internet", "name", "parking",
        "pricerange", "stars", "type",
    ],
    "restaurant": [
        "area", "book day", "book people", "book time", "food", "name", "pricerange",
    ],
    "taxi": ["arriveby", "departure", "destination", "leaveat"],
    "train": ["arriveby", "book people", "day", "departure", "destination", "leaveat"],
}  # fmt: skip


def turn(system, user, *pairs):
    return {
        "system_transcript": system,
        "transcript": user,
        "turn_idx": 0,
        "belief_state": [{"slots": [list(pair)], "act": "inform"} for pair in pairs],
        "turn_label": [],
        "system_acts": [],
        "domain": "hotel",
    }


DIALOGUE = {
    "dialogue_idx": "SNG1.json",
    "domains": ["hotel"],
    "dialogue": [
        turn("", "A cheap hotel .", ("hotel-pricerange", "ch"), ("hotel-area", "not mentioned")),
        turn(
            "which area ?",
            "any , and a bus",
            ("hotel-pricerange", "cheap"),
            ("hotel-area", "do not care"),
            ("bus-day", "monday"),
        ),
    ],
}


def layout(directory, dialogues, name="test_dials.json"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(json.dumps(dialogues), encoding="utf-8")
    return directory


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, dialogues in members.items():
            file.writestr(name, json.dumps(dialogues))
    return path


def read(path, split="test", name="multiwoz21"):
    return list(tasks.get(name).examples(path, split))


def state_of(example):
    return {s.id: s.target for s in example.subtasks if s.target != "none"}


def test_there_are_thirty_described_slots():
    assert list(TRACKED) == [f"{domain}-{slot}" for domain in SLOTS for slot in SLOTS[domain]]
    assert len(TRACKED) == len({slot.description for slot in TRACKED.values()}) == 30


def test_nearly_every_label_of_a_categorical_slot_is_one_of_its_values(real_data):
    source = real_data / "multiwoz" / "derived_trade_layout" / "mwz2.1.zip"
    labels = outside = 0
    for example in tasks.get("multiwoz21", closed=True).examples(source, "test"):
        for subtask in example.subtasks:
            if subtask.allowed is not None:
                labels += subtask.target != "none"
                outside += subtask.target not in subtask.allowed
    assert labels > 20_000
    assert outside < 0.002 * labels


def test_each_user_turn_is_an_example_with_the_dialogue_so_far_and_its_state(tmp_path):
    first, second = read(layout(tmp_path, [DIALOGUE]))
    assert (first.id, first.document) == ("SNG1.json:0", "[user] a cheap hotel .")
    assert state_of(first) == {"hotel-pricerange": "cheap"}
    assert (second.id, second.document) == (
        "SNG1.json:1",
        "[user] a cheap hotel . [system] which area ? [user] any , and a bus",
    )
    assert state_of(second) == {"hotel-pricerange": "cheap", "hotel-area": "dontcare"}


def test_a_directory_a_folder_in_it_and_a_zip_read_the_same(tmp_path):
    expected = read(layout(tmp_path / "flat", [DIALOGUE]))
    layout(tmp_path / "deep" / "mwz2.1", [DIALOGUE])
    assert read(tmp_path / "deep") == expected
    path = archive(tmp_path / "mwz.zip", {"mwz2.1/test_dials.json": [DIALOGUE]})
    assert read(str(path)) == expected


def test_splits_have_the_names_of_the_benchmark_s_files(tmp_path):
    for number, name in enumerate(["train_dials.json", "dev_dials.json", "test_dials.json"]):
        layout(tmp_path, [{**DIALOGUE, "dialogue_idx": f"d{number}"}], name)
    for number, split in enumerate(["train", "validation", "test"]):
        assert read(tmp_path, split)[0].id == f"d{number}.json:0"


def test_a_missing_split_lists_those_that_are_there(tmp_path):
    with pytest.raises(UserError, match=r"no train_dials.json; it contains test_dials.json"):
        read(layout(tmp_path, [DIALOGUE]), "train")
    path = archive(tmp_path / "mwz.zip", {"readme.json": []})
    with pytest.raises(UserError, match=r"mwz.zip: no layout of MultiWOZ .* contains readme.json"):
        read(path)


def test_a_split_that_is_there_twice_is_an_error(tmp_path):
    layout(tmp_path / "2.1", [DIALOGUE])
    layout(tmp_path / "2.4", [DIALOGUE])
    with pytest.raises(UserError, match=r"test_dials.json occurs more than once: .*2.1.*2.4"):
        read(tmp_path)


def test_an_unusable_path_is_an_error(tmp_path):
    with pytest.raises(UserError, match="path is not set"):
        read(None)
    with pytest.raises(UserError, match="no such file or directory"):
        read(tmp_path / "nowhere")


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


def broken_turn(**changes):
    return {**DIALOGUE, "dialogue": [DIALOGUE["dialogue"][0], {**turn("a", "b"), **changes}]}


MALFORMED = {
    r"expected a list \[": {},
    "the split 'test' has no dialogue": [],
    "dialogue number 2: expected an object": [DIALOGUE, "x"],
    'dialogue number 1: "dialogue_idx" is missing': [without(DIALOGUE, "dialogue_idx")],
    'dialogue number 1: "dialogue_idx" must be a string': [{"dialogue_idx": 1.5}],
    'dialogue SNG1.json: "dialogue" is missing': [without(DIALOGUE, "dialogue")],
    "dialogue SNG1.json: a second dialogue has this": [DIALOGUE, DIALOGUE],
    "dialogue SNG1.json, turn 0: expected an object": [{**DIALOGUE, "dialogue": [[]]}],
    'turn 1: "transcript" must be a string, got null': [broken_turn(transcript=None)],
    'turn 1: "belief_state" must be a list, got an object': [broken_turn(belief_state={})],
    'turn 1, belief_state: "slots" is missing': [broken_turn(belief_state=[{}])],
    r"turn 1: expected \[slot, value\]": [broken_turn(belief_state=[{"slots": [["a"]]}])],
    "turn 1: unknown slot 'hotel-colour'": [
        broken_turn(belief_state=[{"slots": [["hotel-colour", "red"]]}])
    ],
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_file_is_named_with_dialogue_and_turn(tmp_path, message):
    path = layout(tmp_path, MALFORMED[message])
    with pytest.raises(UserError, match=message):
        read(path)


def release_turn(user, system, **state):
    domains = {
        domain: {"book": {"booked": [{"name": "x"}]}, "semi": {}}
        for domain in ("taxi", "hotel", "police")
    }
    domains["hotel"]["book"] |= {"day": state.pop("day", ""), "people": ""}
    domains["hotel"]["semi"] |= {"area": "not mentioned", "colour": "red", **state}
    return [{"text": user, "metadata": {}}, {"text": system, "metadata": domains}]


RELEASE = {
    "SNG1.json": {
        "goal": {},
        "log": [
            *release_turn("A b&b in the North.", "Which one?", area="north", type="guesthouses"),
            *release_turn(
                "Alpha-Milton, on Monday", "Done", area="north>east", name="Alpha-Milton", day="we"
            ),
        ],
    },
    "SNG2.json": {"log": release_turn("two two please", "Bye")},
    "SNG3.json": {"log": release_turn("Hello", "Bye")},
    "ODD.json": {"log": release_turn("Hello", "Bye")[:1]},
    "LONG.json": {"log": release_turn("so " * 51, "Bye")},
    "FOREIGN.json": {"log": release_turn("Hello", "\u9225")},
}
LISTS = {"testListFile": "SNG1.json\nODD.json\n", "valListFile": "SNG2.json\n"}


def release(directory, data=RELEASE, ending="", lists=LISTS):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "data.json").write_text(json.dumps(data))
    for name, text in lists.items():
        (directory / f"{name}{ending}").write_text(text)
    return directory


@pytest.mark.parametrize("ending", ["", ".txt", ".json"])
def test_a_release_is_split_by_its_lists_and_loses_what_trade_leaves_out(tmp_path, ending):
    path = release(tmp_path, ending=ending)
    for name in ("multiwoz20", "multiwoz21", "multiwoz23", "multiwoz24"):
        ids = {
            split: [e.id for e in read(path, split, name)]
            for split in ("train", "validation", "test")
        }
        assert ids == {
            "train": ["SNG3.json:0"],
            "validation": ["SNG2.json:0"],
            "test": ["SNG1.json:0", "SNG1.json:1"],
        }


def test_a_release_s_state_follows_its_user_turn(tmp_path):
    first, second = read(release(tmp_path))
    assert first.document == "[user] a bed and breakfast in the north ."
    assert state_of(first) == {"hotel-area": "north", "hotel-type": "guest house"}
    assert second.document == f"{first.document} [system] which 1 ? [user] alpha milton , on monday"
    assert state_of(second) == {
        "hotel-area": "north|east",
        "hotel-name": "alpha milton",
        "hotel-book day": "wednesday",
    }


def test_2_4_alone_writes_splits_compounds(tmp_path):
    log = release_turn("Arbury Lodge guesthouse", "Bye", name="arbury lodge guesthouse")
    path = release(tmp_path, {"SNG1.json": {"log": log}})
    assert state_of(read(path)[0]) == {"hotel-name": "arbury lodge guesthouse"}
    assert state_of(read(path, name="multiwoz24")[0]) == {"hotel-name": "arbury lodge guest house"}


def test_a_release_in_convlab_s_zips_reads_the_same(tmp_path):
    (tmp_path / "convlab").mkdir()
    content = {"SNG1": RELEASE["SNG1.json"]}
    archive(tmp_path / "convlab" / "test.json.zip", {"test.json": content})
    assert read(tmp_path / "convlab") == read(release(tmp_path / "release"))
    with pytest.raises(UserError, match=r"no train.json; it contains test.json"):
        read(tmp_path / "convlab", "train")


def test_a_release_without_lists_asks_for_those_of_2_1(tmp_path):
    path = release(tmp_path, lists={"testListFile": "SNG1.json"})
    assert len(read(path, name="multiwoz23")) == 2
    with pytest.raises(UserError, match=r"valListFile .* is missing.*that of MultiWOZ 2.1"):
        read(path, "validation")


def encoded(value):
    return json.dumps(value).encode()


def packed(value):
    buffer = io.BytesIO()
    archive(buffer, {"test.json": value}, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


LAYOUTS = {
    "trade": {"mwz/test_dials.json": encoded([DIALOGUE, {**DIALOGUE, "dialogue_idx": "b"}])},
    "release": {
        "data.json": encoded(RELEASE),
        **{name: text.encode() for name, text in LISTS.items()},
    },
    "convlab": {"test.json": encoded(RELEASE)},
    "convlab, zipped": {"test.json.zip": packed(RELEASE)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutated_files_are_refused_or_read(tmp_path, layout):
    outcomes = mutations.read_mutated(read, LAYOUTS[layout], tmp_path)
    assert outcomes["refused"] > 200
    assert outcomes["refused"] + outcomes["read"] == 500


@pytest.mark.parametrize(("name", "version"), [("multiwoz21", "2.1"), ("multiwoz24", "2.4")])
def test_real_test_set_has_the_published_size_and_gold_scores_one(real_data, name, version):
    path = real_data / f"multiwoz/derived_trade_layout/mwz{version}.zip"
    task = tasks.get(name)
    examples = list(task.examples(path, "test"))
    assert len(examples) == 7368
    assert len({example.id.rsplit(":", 1)[0] for example in examples}) == 999

    gold = {e.id: {s.id: s.target for s in e.subtasks} for e in examples}
    report = task.score(examples, gold)
    assert report.metrics == {"joint_goal_accuracy": 1.0, "slot_accuracy": 1.0}
    assert all(figure == 1.0 for table in report.tables.values() for figure in table.values())

    # These labels were corrected when the files were made: doing so again changes nothing.
    member = f"mwz{version}/test_dials.json"
    raw = json.load(io.BytesIO(zipfile.ZipFile(path).read(member)))
    labels = {
        f"{d['dialogue_idx']}:{number}": dict(
            pair for entry in t["belief_state"] for pair in entry["slots"]
        )
        for d in raw
        for number, t in enumerate(d["dialogue"])
    }
    assert {e.id: state_of(e) for e in examples} == labels


def test_real_2_4_test_set_has_58_turns_with_alternatives(real_data):
    path = real_data / "multiwoz/derived_trade_layout/mwz2.4.zip"
    examples = read(path, name="multiwoz24")
    assert sum(any("|" in v for v in state_of(e).values()) for e in examples) == 58


def test_real_2_1_release_has_the_states_of_the_trade_layout(real_data):
    release = read(real_data / "multiwoz/ConvLab-2/data/multiwoz")
    trade = read(real_data / "multiwoz/derived_trade_layout/mwz2.1.zip")
    states = {e.id: state_of(e) for e in release}
    assert len(states) == 7368
    assert len({identifier.split(":")[0] for identifier in states}) == 999
    assert states == {e.id: state_of(e) for e in trade}
    gold = {e.id: {s.id: s.target for s in e.subtasks} for e in release}
    metrics = tasks.get("multiwoz21").score(release, gold).metrics
    assert metrics == {"joint_goal_accuracy": 1.0, "slot_accuracy": 1.0}


# Counted in the files by a script of its own: turns without any belief, of 7,368.
@pytest.mark.parametrize(("version", "empty"), [("2.1", 107), ("2.4", 110)])
def test_real_all_none_accuracy_is_the_share_of_empty_states(real_data, version, empty, capsys):
    path = real_data / f"multiwoz/derived_trade_layout/mwz{version}.zip"
    raw = json.loads(zipfile.ZipFile(path).read(f"mwz{version}/test_dials.json"))
    assert sum(not turn["belief_state"] for d in raw for turn in d["dialogue"]) == empty

    task = tasks.get(f"multiwoz{version.replace('.', '')}")
    report = negative_baseline(task, list(task.examples(path, "test")))
    assert report.metrics["joint_goal_accuracy"] == empty / 7368
    with capsys.disabled():
        print(f"\nMultiWOZ {version}, all none: {report.metrics}")

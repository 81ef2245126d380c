import io
import json
import zipfile

import pytest

from pid_jax import tasks
from pid_jax.errors import UserError
from pid_jax.tasks.multiwoz import DESCRIPTIONS
from pid_jax.tasks.multiwoz_labels import corrected_label

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
    assert list(DESCRIPTIONS) == [f"{domain}-{slot}" for domain in SLOTS for slot in SLOTS[domain]]
    assert len(DESCRIPTIONS) == len(set(DESCRIPTIONS.values())) == 30


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


def test_nothing_in_a_zip_is_written_anywhere(tmp_path):
    members = {"../../test_dials.json": [DIALOGUE], "../other.json": []}
    path = archive(tmp_path / "mwz.zip", members)
    before = sorted(tmp_path.parent.rglob("*"))
    assert len(read(path)) == 2
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_splits_have_the_names_of_the_benchmark_s_files(tmp_path):
    for number, name in enumerate(["train_dials.json", "dev_dials.json", "test_dials.json"]):
        layout(tmp_path, [{**DIALOGUE, "dialogue_idx": f"d{number}"}], name)
    for number, split in enumerate(["train", "validation", "test"]):
        assert read(tmp_path, split)[0].id == f"d{number}:0"


def test_a_missing_split_lists_those_that_are_there(tmp_path):
    with pytest.raises(UserError, match=r"'train' \(train_dials.json\) .* it has test \(test_d"):
        read(layout(tmp_path, [DIALOGUE]), "train")
    path = archive(tmp_path / "mwz.zip", {"readme.json": []})
    with pytest.raises(UserError, match=r"mwz.zip: the split 'test' .* no split at all"):
        read(path)


def test_a_split_that_is_there_twice_is_an_error(tmp_path):
    layout(tmp_path / "2.1", [DIALOGUE])
    layout(tmp_path / "2.4", [DIALOGUE])
    with pytest.raises(UserError, match=r"test_dials.json is there more than once: .*2.1.*2.4"):
        read(tmp_path)


def test_an_unusable_path_is_an_error(tmp_path):
    with pytest.raises(UserError, match="path is not set"):
        read(None)
    with pytest.raises(UserError, match="no such file or directory"):
        read(tmp_path / "nowhere")
    text = tmp_path / "text.json"
    text.write_text("[]")
    with pytest.raises(UserError, match=r"expected a directory or a .zip"):
        read(text)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_is_an_error(tmp_path, compression):
    path = archive(tmp_path / "mwz.zip", {"test_dials.json": [DIALOGUE]}, compression)
    intact = path.read_bytes()
    for position in range(50, 120, 5):
        damaged = bytearray(intact)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"mwz.zip: cannot be read"):
            read(path)


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


def broken_turn(**changes):
    return {**DIALOGUE, "dialogue": [DIALOGUE["dialogue"][0], {**turn("a", "b"), **changes}]}


MALFORMED = {
    "expected a list of dialogues": {},
    "with at least one": [],
    "dialogue number 2: expected an object, got str": [DIALOGUE, "x"],
    "dialogue number 1: 'dialogue_idx' is missing": [without(DIALOGUE, "dialogue_idx")],
    "dialogue number 1: 'dialogue_idx' must be a str, got int": [{"dialogue_idx": 1}],
    "dialogue SNG1.json: 'dialogue' is missing": [without(DIALOGUE, "dialogue")],
    "dialogue SNG1.json: a second dialogue has this": [DIALOGUE, DIALOGUE],
    "dialogue SNG1.json, turn 0: expected an object": [{**DIALOGUE, "dialogue": [[]]}],
    "turn 1: 'transcript' must be a str, got NoneType": [broken_turn(transcript=None)],
    "turn 1: 'belief_state' must be a list, got dict": [broken_turn(belief_state={})],
    "turn 1, belief_state: 'slots' is missing": [broken_turn(belief_state=[{}])],
    r"turn 1: expected \[slot, value\]": [broken_turn(belief_state=[{"slots": [["a"]]}])],
    "turn 1: unknown slot 'hotel-colour'": [
        broken_turn(belief_state=[{"slots": [["hotel-colour", "red"]]}])
    ],
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_file_is_named_with_dialogue_and_turn(tmp_path, message):
    path = layout(tmp_path, MALFORMED[message])
    with pytest.raises(UserError, match=f"test_dials.json.*{message}"):
        read(path)


def test_a_file_that_is_not_json_is_an_error(tmp_path):
    for content in (b"{", b"\xff\xfe[]", b"[" * 100_000):
        (tmp_path / "test_dials.json").write_bytes(content)
        with pytest.raises(UserError, match=r"test_dials.json: not JSON"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("slot", "value", "corrected"),
    [
        ("hotel-type", "guesthouses", "guest house"),
        ("hotel-type", "bed and breakfast", "none"),
        ("hotel-name", "bed and breakfast", "bed and breakfast"),
        ("hotel-type", "3 star hotel", "hotel"),
        ("hotel-internet", "free internet", "yes"),
        ("hotel-internet", "free", "yes"),
        ("hotel-parking", "free parking", "free"),  # as TRADE has it
        ("hotel-stars", "4 stars", "4"),
        ("hotel-pricerange", "2", "none"),
        ("hotel-book people", "2", "2"),
        ("restaurant-pricerange", "ch", "cheap"),
        ("restaurant-area", "cambridge", "none"),
        ("train-departure", "cambridge", "cambridge"),
        ("attraction-area", "ely", "none"),
        ("attraction-area", "we", "west"),
        ("train-day", "we", "wednesday"),
        ("restaurant-book day", "no", "none"),
        ("hotel-area", "no", "north"),
        ("hotel-parking", "n", "no"),
        ("hotel-area", "n", "north"),  # first "no", then "north"
        ("attraction-type", "art", "none"),
        ("attraction-type", "mutliple sports", "multiple sports"),
        ("train-leaveat", "not mentioned", "none"),
        ("train-leaveat", "", "none"),
        ("hotel-area", "dont care", "dontcare"),
        ("hotel-area", "do not care", "dontcare"),
        ("hotel-area", "don't care", "dontcare"),
        ("hotel-area", "any", "dontcare"),
        ("hotel-area", "north|east", "north|east"),
        ("hotel-name", "Acorn  Guest House", "acorn guest house"),
    ],
)
def test_labels_are_corrected_as_trade_does(slot, value, corrected):
    assert corrected_label(slot, value) == corrected


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

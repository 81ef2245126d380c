import re
from itertools import islice, pairwise

import pytest

from pid_jax import tasks
from pid_jax.errors import UserError
from pid_jax.tasks import synthetic_language as language

SMALL = {"train_dialogues": 2000, "validation_dialogues": 60, "test_dialogues": 60}


@pytest.fixture(scope="module")
def splits():
    task = tasks.get("synthetic_dst", **SMALL)
    return {split: list(task.examples(None, split)) for split in tasks.SPLITS}


def state_of(example):
    return {s.id: s.target for s in example.subtasks if s.target != "none"}


def utterances_of(example):
    """(speaker, text) pairs, from the document alone."""
    parts = re.split(r"\[(user|system)\] ", example.document)[1:]
    return [(parts[i], parts[i + 1].strip()) for i in range(0, len(parts), 2)]


def turns_of_dialogues(examples):
    dialogues = {}
    for example in examples:
        dialogues.setdefault(example.id.rsplit(":", 1)[0], []).append(example)
    return list(dialogues.values())


def test_every_turn_asks_for_every_slot_of_three_domains(splits):
    for example in splits["test"]:
        assert [s.id for s in example.subtasks] == list(language.DESCRIPTIONS)
    assert len(language.DESCRIPTIONS) == 11
    assert {slot.split("-")[0] for slot in language.DESCRIPTIONS} == {
        "hotel",
        "restaurant",
        "taxi",
    }


def test_each_split_has_its_number_of_dialogues_with_several_turns(splits):
    for split, examples in splits.items():
        dialogues = turns_of_dialogues(examples)
        assert len(dialogues) == SMALL[f"{split}_dialogues"]
        assert all(2 <= len(dialogue) <= 4 for dialogue in dialogues)
        assert all(
            example.id == f"{split}-{number:05d}:{turn}"
            for number, dialogue in enumerate(dialogues)
            for turn, example in enumerate(dialogue)
        )


def test_each_document_continues_the_one_before_it(splits):
    for dialogue in turns_of_dialogues(splits["test"]):
        for before, after in pairwise(dialogue):
            assert after.document.startswith(before.document + " [system] ")
            assert utterances_of(after)[-1][0] == "user"


def test_documents_are_short_lower_case_lines_of_a_small_vocabulary(splits):
    documents = [example.document for examples in splits.values() for example in examples]
    assert all(document == " ".join(document.lower().split()) for document in documents)
    assert max(len(document.split()) for document in documents) <= 95
    assert len({word for document in documents for word in document.split()}) <= 300


def test_the_same_seed_gives_the_same_dialogues_and_another_seed_others(splits):
    again = tasks.get("synthetic_dst", **SMALL)
    assert list(again.examples(None, "test")) == splits["test"]
    other = tasks.get("synthetic_dst", **SMALL, seed=1)
    assert list(other.examples("", "test")) != splits["test"]


def test_generation_does_not_change_between_releases(splits):
    """Published figures name a seed: what it generates has to stay what it was."""
    assert splits["train"][1].document == (
        "[user] can i get a table at the restaurant called iron kettle ? "
        "[system] all right what kind of food ? [user] i like chinese food"
    )


def test_no_dialogue_of_one_split_is_in_another_whatever_the_seeds(splits):
    other_seed = tasks.get("synthetic_dst", seed=7, train_dialogues=8000)
    trained_on = {example.document for example in other_seed.examples(None, "train")}
    trained_on |= {example.document for example in splits["train"]}
    for split in ("validation", "test"):
        unseen = [e.document for e in splits[split] if not e.id.endswith(":0")]
        assert len(unseen) >= 60
        assert trained_on.isdisjoint(unseen)


def test_values_are_those_of_the_tables_and_all_of_them_occur(splits):
    names = {*language.HOTELS, *language.RESTAURANTS}
    seen = {slot: set() for slot in language.VALUES}
    for example in splits["train"]:
        for slot, value in state_of(example).items():
            seen[slot].add(value)
    for slot, values in language.VALUES.items():
        assert set(values) <= seen[slot]
        carried_over = names if slot in ("taxi-departure", "taxi-destination") else set()
        indifferent = {"dontcare"} if slot in language.INDIFFERENT else set()
        assert seen[slot] <= {*values, *carried_over, *indifferent}


def test_every_value_is_in_the_text_or_was_taken_over_from_text_that_is(splits):
    for example in splits["train"]:
        for value in state_of(example).values():
            said = language.PARAPHRASES.get(value, (value,))
            assert value == "dontcare" or any(form in example.document for form in said)


def test_a_turn_changes_a_value_only_by_a_correction(splits):
    corrected = 0
    for dialogue in turns_of_dialogues(splits["train"]):
        for before, after in pairwise(dialogue):
            old, new = state_of(before), state_of(after)
            assert old.keys() <= new.keys()
            changed = [slot for slot in old if old[slot] != new[slot]]
            corrected += len(changed)
            if changed:
                assert len(changed) == 1
                assert utterances_of(after)[-1][1].split()[0] in ("actually", "sorry")
    assert corrected > 100


def test_a_taxi_to_the_hotel_goes_to_the_hotel_by_name(splits):
    found = 0
    for example in splits["train"]:
        last = utterances_of(example)[-1][1]
        if re.search(r"taxi.* to (the|my) hotel\b", last):
            state = state_of(example)
            assert state["taxi-destination"] == state["hotel-name"]
            found += 1
    assert found > 20


def test_the_same_area_is_taken_over(splits):
    found = 0
    for example in splits["train"]:
        if "in the same" in utterances_of(example)[-1][1]:
            state = state_of(example)
            assert state["restaurant-area"] == state["hotel-area"] != "dontcare"
            found += 1
    assert found > 20


def test_an_offer_counts_only_when_it_is_accepted(splits):
    decisions = {"accepted": 0, "refused": 0, "replaced": 0}
    for example in splits["train"]:
        utterances = utterances_of(example)
        if len(utterances) < 3 or not re.search("how about|i recommend", utterances[-2][1]):
            continue
        domain = "hotel" if "hotel" in utterances[-2][1] else "restaurant"
        name = state_of(example).get(f"{domain}-name")
        answer = utterances[-1][1]
        if answer in language.ACCEPTANCES:
            assert name is not None
            assert name in utterances[-2][1]
            decisions["accepted"] += 1
        elif answer in language.REFUSALS:
            assert name is None
            decisions["refused"] += 1
        else:
            assert name is not None
            assert name in answer
            assert name not in utterances[-2][1]
            decisions["replaced"] += 1
    assert min(decisions.values()) > 20


def test_indifference_is_dontcare(splits):
    found = 0
    for example in splits["train"]:
        if utterances_of(example)[-1][1] in language.INDIFFERENT_ANSWERS:
            assert "dontcare" in state_of(example).values()
            found += 1
    assert found > 20


def test_a_taxi_never_goes_where_it_comes_from(splits):
    for example in splits["train"]:
        state = state_of(example)
        if "taxi-departure" in state:
            assert state["taxi-departure"] != state.get("taxi-destination")


def test_examples_are_generated_as_they_are_read():
    endless = tasks.get("synthetic_dst", train_dialogues=10**9)
    assert len(list(islice(endless.examples(None, "train"), 5))) == 5


def test_a_path_or_an_unknown_split_is_an_error():
    task = tasks.get("synthetic_dst")
    with pytest.raises(UserError, match="reads no file: got path data"):
        task.examples("data", "train")
    with pytest.raises(UserError, match="unknown split 'dev': choose from train, validation"):
        task.examples(None, "dev")
    with pytest.raises(UserError, match="test_dialogues=0: it must be an integer above 0"):
        tasks.get("synthetic_dst", test_dialogues=0)

"""Numbers here are worked by hand from TRADE's definition over 30 slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pid_jax.errors import UserError
from pid_jax.metrics import joint_goal_accuracy
from pid_jax.metrics.joint_goal_accuracy import accuracy_per_slot, joint_accuracy_per_domain

STATES = st.dictionaries(
    st.sampled_from(["hotel-area", "hotel-name", "taxi-leaveat"]),
    st.sampled_from(["none", "dontcare", "north", "a|b", "12:15"]),
)


def test_a_turn_counts_only_when_every_slot_is_right():
    references = [
        {"hotel-area": "north", "hotel-stars": "4"},
        {"hotel-area": "north", "hotel-stars": "4"},
        {"hotel-area": "north", "hotel-stars": "4"},
        {},
    ]
    predictions = [
        {"hotel-area": "north", "hotel-stars": "4"},  # right
        {"hotel-area": "south", "hotel-stars": "4"},  # one missed, its wrong value not counted
        {"hotel-area": "north"},  # one missed
        {"taxi-leaveat": "12:15"},  # one wrong
    ]
    scores = joint_goal_accuracy(predictions, references)
    assert scores == {
        "joint_goal_accuracy": 1 / 4,
        "slot_accuracy": pytest.approx((30 + 29 + 29 + 29) / (4 * 30)),
    }


def test_missed_and_wrong_slots_both_count():
    scores = joint_goal_accuracy(
        [{"hotel-name": "acorn", "hotel-type": "hotel", "train-day": "monday"}],
        [{"hotel-area": "east", "hotel-stars": "3", "train-day": "sunday"}],
    )
    # Missed: area, stars, day. Wrong: name, type. The wrong day is the missed one again.
    assert scores["slot_accuracy"] == pytest.approx((30 - 3 - 2) / 30)


@pytest.mark.parametrize("absent", ["none", "not mentioned", ""])
def test_absent_values_are_no_slots(absent):
    scores = joint_goal_accuracy([{"hotel-area": absent}, {}], [{}, {"hotel-area": absent}])
    assert scores == {"joint_goal_accuracy": 1.0, "slot_accuracy": 1.0}


def test_dontcare_must_be_predicted():
    scores = joint_goal_accuracy([{"hotel-area": "none"}], [{"hotel-area": "dontcare"}])
    assert scores["joint_goal_accuracy"] == 0.0


def test_an_alternative_is_right_only_under_any_of():
    predictions = [{"hotel-pricerange": "cheap"}]
    references = [{"hotel-pricerange": "cheap|moderate"}]
    assert joint_goal_accuracy(predictions, references)["joint_goal_accuracy"] == 0.0
    lenient = joint_goal_accuracy(predictions, references, any_of=True)
    assert lenient == {"joint_goal_accuracy": 1.0, "slot_accuracy": 1.0}
    wrong = joint_goal_accuracy([{"hotel-pricerange": "chea"}], references, any_of=True)
    assert wrong["joint_goal_accuracy"] == 0.0


def test_slot_accuracy_is_over_the_slots_that_the_benchmark_tracks():
    scores = joint_goal_accuracy([{}], [{"hotel-area": "north"}], slots=10)
    assert scores["slot_accuracy"] == pytest.approx(9 / 10)


@given(st.lists(STATES, min_size=1))
def test_gold_against_gold_is_exactly_one(states):
    for any_of in (False, True):
        scores = joint_goal_accuracy(states, states, any_of=any_of)
        assert scores == {"joint_goal_accuracy": 1.0, "slot_accuracy": 1.0}


@given(st.lists(st.tuples(STATES, STATES), min_size=1))
def test_any_of_is_never_stricter(pairs):
    predictions, references = zip(*pairs, strict=True)
    strict = joint_goal_accuracy(predictions, references)
    lenient = joint_goal_accuracy(predictions, references, any_of=True)
    assert all(0.0 <= strict[name] <= lenient[name] <= 1.0 for name in strict)


def test_unequal_lengths_are_refused():
    with pytest.raises(UserError, match="1 predictions for 2 references"):
        joint_goal_accuracy([{}], [{}, {}])


def test_no_turns_are_refused():
    with pytest.raises(UserError, match="no turns"):
        joint_goal_accuracy([], [])


def test_more_slots_than_are_tracked_are_refused():
    with pytest.raises(UserError, match="references name 2 slots, but slot accuracy is taken over"):
        joint_goal_accuracy([{}], [{"a-b": "1", "c-d": "2"}], slots=1)


def test_a_predicted_slot_that_is_not_tracked_is_a_wrong_value():
    gold = {f"d-{n}": "1" for n in range(30)}
    assert joint_goal_accuracy([{**gold, "police-name": "x"}], [gold]) == {
        "joint_goal_accuracy": 0.0,
        "slot_accuracy": pytest.approx(29 / 30),
    }
    # Said to be absent, it is no value.
    assert joint_goal_accuracy([{**gold, "police-name": "none"}], [gold]) == {
        "joint_goal_accuracy": 1.0,
        "slot_accuracy": 1.0,
    }
    # 30 right of 30, and 40 wrong: not less than nothing.
    many = {f"e-{n}": "1" for n in range(40)}
    scores = joint_goal_accuracy([{**gold, **many}, gold], [gold, gold])
    assert scores == {"joint_goal_accuracy": 0.5, "slot_accuracy": 0.5}


def test_any_of_several_values_is_right():
    scores = joint_goal_accuracy(
        [{"taxi-leaveat": "12:15"}, {"taxi-leaveat": "12:15"}],
        [{"taxi-leaveat": ("12:15", "quarter past 12")}, {"taxi-leaveat": ("12:30", "half past")}],
    )
    assert scores["joint_goal_accuracy"] == 0.5


def test_without_a_number_of_slots_those_count_that_a_turn_names():
    scores = joint_goal_accuracy(
        [{"a-b": "none", "a-c": "1"}, {"d-e": "2"}],
        [{"a-b": "none", "a-c": "2"}, {"d-e": "2"}],
        slots=None,
    )
    assert scores == {"joint_goal_accuracy": 0.5, "slot_accuracy": pytest.approx(2 / 3)}


def test_a_slot_is_scored_over_the_turns_that_name_it():
    predictions = [{"a-b": "1", "a-c": "none"}, {"a-b": "2"}]
    references = [{"a-b": "1", "a-c": "3"}, {"a-b": ("1", "2")}]
    assert accuracy_per_slot(predictions, references) == {"a-b": 1.0, "a-c": 0.0}


def test_a_domain_is_scored_over_the_turns_in_which_it_has_a_value():
    predictions = [{"a-b": "1", "c-d": "none"}, {"a-b": "2"}, {"c-d": "none"}]
    references = [{"a-b": "1", "c-d": "none"}, {"a-b": "none"}, {"c-d": "not mentioned"}]
    assert joint_accuracy_per_domain(predictions, references) == {"a": 0.5}

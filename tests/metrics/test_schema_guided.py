"""Numbers worked by hand from schema_guided_dst/metrics.py of google-research."""

import pytest

from pid_jax.errors import UserError
from pid_jax.metrics import schema_guided
from pid_jax.metrics.schema_guided import similarity

SIMILAR = [
    ("york new", "New York", 1.0),  # order and case do not matter
    ("11:30 am", "11 30 AM!", 1.0),  # nor does punctuation
    ("", "x", 0.0),
    ("!", "?", 1.0),  # nothing is left of either
    ("café", "caf", 1.0),  # what is not ASCII is dropped
    ("abcd", "abxy", 0.5),  # 2 * 2 of 4 + 4 characters
    ("abc", "abd", 0.67),  # 2 * 2 of 3 + 3, in hundredths
]


@pytest.mark.parametrize(("text", "other", "expected"), SIMILAR)
def test_similarity_is_that_of_sorted_words_in_hundredths(text, other, expected):
    assert similarity(text, other) == similarity(other, text) == expected


def test_joint_is_the_mean_of_products_and_average_that_of_the_slots_with_a_value():
    predictions = [
        {"a": "abcd", "b": "abd", "c": "true"},
        {"a": "none", "b": "x"},  # b is not there
        {"a": ""},
    ]
    references = [
        {"a": ("zz", "abxy"), "b": "abc", "c": ("true", "yes"), "d": "none"},
        {"a": "x"},
        {"a": "none"},
    ]
    assert schema_guided(predictions, references, categorical={"c"}) == {
        "joint_goal_accuracy": pytest.approx((0.5 * 0.67 * 1 + 0 + 1) / 3),
        "average_goal_accuracy": pytest.approx(((0.5 + 0.67 + 1) / 3 + 0) / 2),
    }


def test_a_category_is_right_by_the_first_value_and_exact_string():
    for said, score in (("true", 1.0), ("yes", 0.0), ("tru", 0.0)):
        scores = schema_guided([{"c": said}], [{"c": ("true", "yes")}], categorical={"c"})
        assert set(scores.values()) == {score}
    assert schema_guided([{}], [{"c": "none"}]) == {"joint_goal_accuracy": 1.0}


def test_unequal_lengths_and_no_frames_are_refused():
    with pytest.raises(UserError, match="1 predictions for 2 references"):
        schema_guided([{}], [{}, {}])
    with pytest.raises(UserError, match="no frames"):
        schema_guided([], [])

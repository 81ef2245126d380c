import pytest

from pid_jax.errors import UserError
from pid_jax.tasks.text_scores import TextScores

OWN = "tests.helpers.own_scores"


def test_scores_are_reported_under_their_names():
    scores = TextScores(f"exact_match,f1, {OWN}:share")
    # "b" is right but for white space; of "c d", one word of two is said, and one of one is right.
    assert scores(["a", " b ", "c", ""], ["a", "b", "c d", "x"]) == {
        "exact_match": 2 / 4,
        "f1": pytest.approx((1 + 1 + 2 / 3 + 0) / 4),
        "share": 1 / 4,
    }
    assert list(scores.policy) == ["exact_match", "f1", "share"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "unknown metric '': choose from exact_match, f1, rouge, or name a function"),
        ("f1,", "unknown metric ''"),
        ("accuracy", "unknown metric 'accuracy'"),
        ("no_such_module:score", "the module 'no_such_module' cannot be imported .*PYTHONPATH"),
        (":score", "the module '' cannot be imported"),
        (".a:score", "the module '.a' cannot be imported"),
        (f"{OWN}:scores", "tests.helpers.own_scores has no class or function 'scores'"),
        (f"{OWN}:score", "has no class or function 'score'"),
        (f"{OWN}:", "has no class or function ''"),
        (f"{OWN}:one_argument", "it must take two lists, predictions and references"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_the_work(name, message):
    with pytest.raises(UserError, match=message):
        TextScores(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "must return a number, or a dict .*; it returned 'good' for 'text'"),
        ("one_each", r"must return a number, .*; it returned \[1.0, 1.0\] for 'one_each'"),
        ("nan", "returned nan for 'a'"),
        ("numbered", "it returned 1.0 for 1"),
        ("exact_match", "another score is called 'exact_match'"),
    ],
)
def test_a_function_that_returns_no_number_is_named(name, message):
    scores = TextScores(f"exact_match,{OWN}:{name}")
    with pytest.raises(UserError, match=message):
        scores(["a", "b"], ["a", "b"])

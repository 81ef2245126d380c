"""The worst examples of any task, by texts alone."""

import pytest

from pid_jax.data.examples import Example, Subtask
from pid_jax.html_report.worst import worst
from pid_jax.scoring import Answer


def example(identifier: str, *rows: tuple[str, str, float]) -> tuple[Example, list[Answer]]:
    """Rows of target, prediction, score."""
    subtasks = tuple(Subtask(str(n), "?", target) for n, (target, _, _) in enumerate(rows))
    return Example(identifier, "text", subtasks), [Answer(text, score) for _, text, score in rows]


def order(*made: tuple[Example, list[Answer]], most: int = 9) -> tuple[list[str], int]:
    examples, answers = zip(*made, strict=True)
    found, total = worst(examples, answers, None, most=most)
    return [one.example.id for one in found], total


def test_the_fewest_shared_words_come_first() -> None:
    half = example("half", ("a b c d", "a b x y", -1.0), ("1", "1", 0.0))
    wrong = example("wrong", ("north", "south", -1.0), ("1", "1", 0.0))
    all_wrong = example("all wrong", ("north", "south", -1.0), ("1", "2", 0.0))
    right = example("right", ("north", " north\n", -9.0), ("1", "1", -9.0))
    assert order(half, right, wrong, all_wrong) == (["all wrong", "wrong", "half"], 3)


def test_of_equal_ones_the_least_likely_wrong_prediction_comes_first() -> None:
    sure = example("sure", ("north", "south", -0.1), ("1", "1", -5.0))
    unsure = example("unsure", ("north", "south", -2.0), ("1", "1", -0.1))
    assert order(sure, unsure) == (["unsure", "sure"], 2)


def test_no_more_than_the_limit_but_all_are_counted() -> None:
    made = [example(str(n), ("a b", "c", -float(n))) for n in range(5)]
    assert order(*made, most=2) == (["4", "3"], 5)


@pytest.mark.parametrize(
    ("references", "prediction", "overlap"),
    [
        (("in two weeks", "two weeks"), "two weeks", 1.0),
        (("in two weeks", "never"), "weeks", 0.5),  # of words 1 of 1 and 1 of 3
        ((), "unanswerable", 1.0),  # no answer is right: the target says so
        ((), "two weeks", 0.0),
    ],
)
def test_the_nearest_right_answer_counts(
    references: tuple[str, ...], prediction: str, overlap: float
) -> None:
    subtasks = (
        Subtask("q", "?", references[0] if references else "unanswerable", references=references),
        Subtask("other", "?", "yes"),
    )
    answers = [[Answer(prediction), Answer("no")]]
    [found], _ = worst([Example("e", "text", subtasks)], answers, None, most=1)
    assert found.subtasks[0].overlap == pytest.approx(overlap)
    assert found.subtasks[0].differs == (overlap < 1)


def test_without_a_target_nothing_is_wrong() -> None:
    made = Example("e", "text", (Subtask("q", "?"),))
    assert worst([made], [[Answer("anything")]], None, most=1) == ([], 0)


def test_an_empty_prediction_says_what_the_negative_target_says() -> None:
    subtasks = (Subtask("a", "?", "none"), Subtask("b", "?", "north"))
    made = Example("e", "text", subtasks)
    [found], _ = worst([made], [[Answer(" "), Answer("")]], "none", most=1)
    assert [one.differs for one in found.subtasks] == [False, True]
    [found], _ = worst([made], [[Answer(" "), Answer("")]], None, most=1)
    assert [one.differs for one in found.subtasks] == [True, True]

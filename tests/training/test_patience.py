import math

from pid_jax.checkpoints import ranking
from pid_jax.training.patience import Patience


def test_evaluations_in_a_row_without_a_better_value_end_the_run():
    patience = Patience("loss", 2)
    counts = []
    for loss in (3.0, 2.0, 2.0, 1.9, 2.5, 1.9):  # an equal value is no better
        assert not patience.exhausted
        patience.add({"loss": loss})
        counts.append(patience.without_improvement)
    assert counts == [0, 0, 1, 0, 1, 2]
    assert patience.exhausted


def test_the_highest_value_of_another_metric_is_best_unless_its_report_says_otherwise():
    higher, lower = Patience("task/f1", 1), Patience("task/wer", 1)
    for value in (0.5, 0.4):
        higher.add({"task/f1": value})
        lower.add({"task/wer": value}, ("task/wer",))
    assert higher.exhausted
    assert not lower.exhausted


def test_an_evaluation_without_the_metric_does_not_count():
    patience = Patience("task/f1", 1)
    for metrics in ({"task/f1": 0.5}, {"loss": 1.0}, {}):
        patience.add(metrics)
    assert patience.without_improvement == 0


def test_zero_is_no_early_stopping():
    patience = Patience("loss", 0)
    for _ in range(5):
        patience.add({"loss": 1.0})
    assert not patience.exhausted


def test_a_resumed_run_counts_from_its_lines():
    lines = [
        {"step": 1, "split": "train", "loss": 9.0, "f1": 9.0},
        {"step": 1, "split": "validation", "loss": 2.0, "f1": 9.0},
        {"step": 1, "split": "task", "f1": 0.7, "wer": 0.3, "lower_is_better": ["wer"]},
        {"step": 2, "split": "task", "f1": 0.6, "wer": 0.2, "lower_is_better": ["wer"]},
        {"step": 2, "split": "validation", "loss": 2.5},
        {"step": 3, "split": "validation", "loss": None},
        {"step": 3, "split": "task", "f1": 0.6, "wer": 0.2, "lower_is_better": ["wer"]},
    ]
    expected = {"task/f1": 2, "task/wer": 1, "loss": 2}
    for metric, count in expected.items():
        assert Patience(metric, 9, lines).without_improvement == count


def test_a_value_that_is_not_a_number_is_never_the_best():
    patience = Patience("loss", 9)
    for loss in (math.nan, 1.0, math.nan, 0.5):
        patience.add({"loss": loss})
    assert patience.without_improvement == 0
    assert max((1.0, 0.5, math.nan), key=lambda loss: ranking.rank("loss", loss)) == 0.5
    assert max((math.nan, 0.1, 0.2), key=lambda f1: ranking.rank("task/f1", f1)) == 0.2

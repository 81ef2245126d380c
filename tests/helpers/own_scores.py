"""Scores as a user may write them, right and wrong."""

score = 1


def lengths(predictions, references):
    assert type(predictions) is type(references) is list
    return {"longest": max(map(len, predictions)), "shortest": min(map(len, predictions))}


def share(predictions, references):
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def exact_match(predictions, references):
    return 1.0


def one_argument(predictions):
    return 1.0


def text(predictions, references):
    return "good"


def one_each(predictions, references):
    return [1.0 for _ in predictions]


def nan(predictions, references):
    return {"a": float("nan")}


def numbered(predictions, references):
    return {1: 1.0}

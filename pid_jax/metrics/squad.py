"""Exact match and token F1 of short answers, by the rules of SQuAD v2."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from pid_jax.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Scores {id: text} against {id: [gold, ...]}; an empty list of golds means no answer.

    Returns "exact" and "f1" in percent with "total", the number of questions, and the same
    three with the prefix "HasAns_" over the questions with golds and "NoAns_" over those
    without, each group left out if it has no question. Predictions for ids that are not in
    `references` are ignored.

    Raises UserError for a question without a prediction, which must not shrink the denominator,
    and if there is no question at all.

    Defined by Rajpurkar et al. 2018 (arXiv 1806.03822), evaluate-v2.0.py.
    """
    if not references:
        raise UserError("a SQuAD score of no questions is undefined: the references are empty")
    missing = [question for question in references if question not in predictions]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(references)} questions have no prediction, the first of "
            f"them {missing[0]!r}: predict an empty string where there is no answer"
        )

    exact: dict[str, float] = {}
    f1: dict[str, float] = {}
    for question, golds in references.items():
        if isinstance(golds, str):
            raise UserError(f"the references of {question!r} are one string: give a list of golds")
        prediction = predictions[question]
        # A gold of nothing but articles and punctuation is no answer.
        answers = [gold for gold in golds if normalize(gold)] or [""]
        exact[question] = max(float(normalize(prediction) == normalize(gold)) for gold in answers)
        f1[question] = max(token_f1(prediction, gold) for gold in answers)

    groups = {
        "": list(references),
        "HasAns_": [question for question, golds in references.items() if golds],
        "NoAns_": [question for question, golds in references.items() if not golds],
    }
    scores: dict[str, float] = {}
    for prefix, questions in groups.items():
        if questions:
            total = len(questions)
            scores[f"{prefix}exact"] = 100.0 * sum(exact[q] for q in questions) / total
            scores[f"{prefix}f1"] = 100.0 * sum(f1[q] for q in questions) / total
            scores[f"{prefix}total"] = total
    return scores


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous white space."""
    without_punctuation = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the two multisets of normalised words, in [0, 1].

    Where one side has no words, 1 if neither has, else 0.
    """
    predicted_words = normalize(prediction).split()
    gold_words = normalize(gold).split()
    if not predicted_words or not gold_words:
        return float(predicted_words == gold_words)
    shared = (Counter(predicted_words) & Counter(gold_words)).total()
    # 2 * precision * recall / (precision + recall), simplified.
    return 2 * shared / (len(predicted_words) + len(gold_words))

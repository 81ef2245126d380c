"""Exact match and token F1 of short answers, by the rules of SQuAD 1.1 or 2.0."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from pid_jax.errors import UserError

Version = Literal["1.1", "2.0"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    version: Version = "2.0",
) -> dict[str, float]:
    """Scores {id: text} against {id: [gold, ...]}. An empty list of golds means no answer.

    The versions treat golds of only articles and punctuation, such as "The A", differently. Version
    2.0 ignores such golds, reads a list of only such golds as "no answer", and F1 of two such texts
    is 1. Version 1.1 treats them as regular answers, F1 without a shared word is 0, and every
    question needs a gold.

    Returns "exact" and "f1" in percent and "total", the number of questions. The prefix "HasAns_"
    denotes the same three over questions with golds, "NoAns_" over those without. A group without
    questions is left out. Predictions for ids that are not in `references` are ignored.

    Raises UserError for a question without a prediction, in version 1.1 for a question without a
    gold, and if there are no questions.

    Defined by Rajpurkar et al. 2016 (arXiv 1606.05250), evaluate-v1.1.py, and 2018 (arXiv
    1806.03822), evaluate-v2.0.py.
    """
    if version not in get_args(Version):
        raise UserError(f"version={version!r}: choose from {', '.join(get_args(Version))}")
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
        if version == "1.1" and not golds:
            raise UserError(f"question {question!r} has no gold, but SQuAD 1.1 requires one")
        answers = golds if version == "1.1" else _answers(golds)
        exact[question] = max(float(normalize(prediction) == normalize(gold)) for gold in answers)
        f1[question] = max(token_f1(prediction, gold, version=version) for gold in answers)

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


def _answers(golds: Sequence[str]) -> Sequence[str]:
    """The golds of SQuAD 2.0's evaluation, without those of only articles and punctuation."""
    return [gold for gold in golds if normalize(gold)] or [""]


def normalize(text: str) -> str:
    """Lower-case text without ASCII punctuation, articles and repeated white space."""
    without_punctuation = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def token_f1(prediction: str, gold: str, *, version: Version = "2.0") -> float:
    """F1 of the two multisets of normalised words, in [0, 1].

    It is 0 if a side has no words, except that version 2.0 gives 1 if neither side has words.
    """
    predicted_words = normalize(prediction).split()
    gold_words = normalize(gold).split()
    if not predicted_words or not gold_words:
        return float(version == "2.0" and predicted_words == gold_words)
    shared = (Counter(predicted_words) & Counter(gold_words)).total()
    # 2 * precision * recall / (precision + recall), simplified.
    return 2 * shared / (len(predicted_words) + len(gold_words))

"""Goal accuracy of Schema-Guided Dialogue, by the rules of its official evaluation."""

import re
from collections.abc import Collection, Mapping, Sequence

from pid_jax.errors import UserError
from pid_jax.metrics.joint_goal_accuracy import Values, is_absent

_NO_WORD = re.compile(r"\W", re.ASCII)


def schema_guided(
    predictions: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, Values]],
    *,
    categorical: Collection[str] = (),
) -> dict[str, float]:
    """Scores cumulative dialogue states frame by frame, both results in [0, 1].

    Each element maps slot to value for one frame: one service at one user turn. "none", "not
    mentioned" and "" mean absent, on both sides. The score of a slot that one side alone has is 0,
    of one that neither has 1. A slot among `categorical` must have the reference's first value by
    exact string; any other scores its similarity to the most similar of the reference's values.

    `joint_goal_accuracy` is the mean over frames of the product over slots.
    `average_goal_accuracy` is the mean over frames of the mean over the slots that the reference
    has; frames without any are left out, and so is this result if there is no other frame.

    Raises UserError if the two differ in length, are empty, or if `rapidfuzz` is not installed.

    Defined by Rastogi et al. 2020 (arXiv 1909.05855) and `get_average_and_joint_goal_accuracy` of
    schema_guided_dst/metrics.py in google-research.
    """
    if len(predictions) != len(references):
        raise UserError(
            f"goal accuracy needs one prediction for each frame: got {len(predictions)} "
            f"predictions for {len(references)} references"
        )
    if not references:
        raise UserError("goal accuracy of no frames is undefined: the references are empty")
    joint: list[float] = []
    average: list[float] = []
    for prediction, reference in zip(predictions, references, strict=True):
        product = 1.0
        present: list[float] = []
        for slot in prediction.keys() | reference.keys():
            predicted, gold = prediction.get(slot), reference.get(slot)
            score = _score(predicted, gold, slot in categorical)
            product *= score
            if not is_absent(gold):
                present.append(score)
        joint.append(product)
        if present:
            average.append(sum(present) / len(present))
    scores = {"joint_goal_accuracy": sum(joint) / len(joint)}
    if average:
        scores["average_goal_accuracy"] = sum(average) / len(average)
    return scores


def _score(predicted: str | None, gold: Values | None, categorical: bool) -> float:
    if predicted is None or gold is None or is_absent(predicted) or is_absent(gold):
        return float(is_absent(predicted) and is_absent(gold))
    values = (gold,) if isinstance(gold, str) else gold
    if categorical:
        return float(predicted == values[0])
    return max(similarity(predicted, value) for value in values)


def similarity(text: str, other: str) -> float:
    """How alike the sorted words of two texts are, in [0, 1], in hundredths.

    Case, characters that are not ASCII and punctuation do not matter, as `token_sort_ratio` of
    fuzzywuzzy has it.
    """
    try:
        from rapidfuzz import fuzz
    except ModuleNotFoundError as error:
        raise UserError(
            f"the official score of SGD needs the package {error.name}: pip install rapidfuzz"
        ) from error
    words, other_words = _sorted_words(text), _sorted_words(other)
    return round(fuzz.ratio(words, other_words)) / 100


def _sorted_words(text: str) -> str:
    ascii_only = text.encode("ascii", "ignore").decode()
    return " ".join(sorted(_NO_WORD.sub(" ", ascii_only).lower().split()))

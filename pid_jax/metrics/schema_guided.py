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
    """Scores cumulative dialogue states frame by frame. Both results are in [0, 1].

    Each element maps slot to value for one frame: one service at one user turn. "none", "not
    mentioned" and "" mean absent, on both sides. A slot scores 0 if only one side has it, and 1 if
    neither side has it. A slot in `categorical` scores 1 if it equals the reference's first value
    by exact string, else 0. Any other slot scores the similarity to the most similar of the
    reference's values.

    `joint_goal_accuracy` is the mean over frames of the product over slots.
    `average_goal_accuracy` is the mean over frames of the mean over the slots of the reference.
    It excludes frames whose reference is empty, and is left out if no frame remains.

    Raises UserError if the arguments differ in length or are empty, and if `rapidfuzz` is not
    installed.

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
    """Similarity of the sorted words of two texts, in [0, 1], rounded to hundredths.

    Ignores case, punctuation and non-ASCII characters, like `token_sort_ratio` of fuzzywuzzy.
    Raises UserError if `rapidfuzz` is not installed.
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

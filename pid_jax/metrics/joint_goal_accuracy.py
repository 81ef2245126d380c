"""Joint goal accuracy and slot accuracy of dialogue states, by TRADE's rules."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pid_jax.errors import UserError

# What a slot that was never mentioned is written as; none of these is a value.
ABSENT_VALUES = frozenset({"none", "not mentioned", ""})

# A reference's value, or all the values of which any is right.
Values = str | Sequence[str]


def joint_goal_accuracy(
    predictions: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, Values]],
    *,
    slots: int | None = 30,
    any_of: bool = False,
) -> dict[str, float]:
    """Scores cumulative dialogue states turn by turn, both results in [0, 1].

    Each element maps slot to value for one user turn. "none", "not mentioned" and "" mean
    absent, on both sides; "dontcare" is a value like any other and must be predicted.
    `joint_goal_accuracy` is the share of turns whose sets of (slot, value) pairs are equal by
    exact string. `slot_accuracy` is the mean of (slots - missed - wrong) / slots, where a wrong
    value for a missed slot is not counted twice, and `slots` is how many slots the benchmark
    tracks (MultiWOZ: 30); it is 0 for a turn of more mistakes than that. A predicted slot that the
    benchmark does not track is a wrong value. With `slots=None` they are those that a turn names on
    either side, the absent ones included, and each of them weighs the same.

    A reference may list several values: any of them is right. With `any_of`, a reference "a|b" is
    matched by "a", by "b" and by "a|b"; without, only by the whole string.

    Raises UserError if the two differ in length, are empty, or if the references name more than
    `slots` slots.

    Defined by Wu et al. 2019 (arXiv 1905.08743), `evaluate_metrics` and `compute_acc` of
    models/TRADE.py in jasonwu0731/trade-dst.
    """
    _check(predictions, references)
    tracked = {slot for state in references for slot in state}
    if slots is not None and len(tracked) > slots:
        raise UserError(
            f"the references name {len(tracked)} slots, but slot accuracy is taken over {slots}: "
            f"pass slots={len(tracked)} or more, or leave out the slots that are not tracked"
        )

    equal_turns = 0
    right_slots = 0
    all_slots = 0
    for prediction, reference in zip(predictions, references, strict=True):
        mistakes = sum(
            not _right(prediction.get(slot), reference.get(slot), any_of)
            for slot in prediction.keys() | reference.keys()
        )
        asked = len(prediction.keys() | reference.keys()) if slots is None else slots
        equal_turns += mistakes == 0
        right_slots += max(asked - mistakes, 0)
        all_slots += asked

    return {
        "joint_goal_accuracy": equal_turns / len(references),
        "slot_accuracy": right_slots / all_slots if all_slots else 1.0,
    }


def accuracy_per_slot(
    predictions: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, Values]],
    *,
    any_of: bool = False,
) -> dict[str, float]:
    """For each slot, the share of right values among the turns that name it, absent ones too."""
    _check(predictions, references)
    turns: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for prediction, reference in zip(predictions, references, strict=True):
        for slot in prediction.keys() | reference.keys():
            turns[slot] += 1
            right[slot] += _right(prediction.get(slot), reference.get(slot), any_of)
    return {slot: right[slot] / turns[slot] for slot in sorted(turns)}


def joint_accuracy_per_domain(
    predictions: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, Values]],
    *,
    any_of: bool = False,
) -> dict[str, float]:
    """For each domain, the share of turns with all its slots right.

    The domain of "hotel-area" is "hotel". Of the turns only those count in which the domain has
    a value, in the reference or in the prediction: it is absent from most others, which would
    make any model look good.
    """
    _check(predictions, references)
    turns: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for prediction, reference in zip(predictions, references, strict=True):
        present: set[str] = set()
        mistaken: set[str] = set()
        for slot in prediction.keys() | reference.keys():
            domain = slot.split("-")[0]
            predicted, gold = prediction.get(slot), reference.get(slot)
            if not (is_absent(predicted) and is_absent(gold)):
                present.add(domain)
            if not _right(predicted, gold, any_of):
                mistaken.add(domain)
        turns.update(present)
        right.update(present - mistaken)
    return {domain: right[domain] / turns[domain] for domain in sorted(turns)}


def _check(
    predictions: Sequence[Mapping[str, str]], references: Sequence[Mapping[str, Values]]
) -> None:
    if len(predictions) != len(references):
        raise UserError(
            f"joint goal accuracy needs one prediction for each turn: got {len(predictions)} "
            f"predictions for {len(references)} references"
        )
    if not references:
        raise UserError("joint goal accuracy of no turns is undefined: the references are empty")


def is_absent(values: Values | None) -> bool:
    """Whether a slot has no value, however that is written."""
    if values is None or isinstance(values, str):
        return values is None or values in ABSENT_VALUES
    return all(value in ABSENT_VALUES for value in values)


def _right(predicted: str | None, gold: Values | None, any_of: bool) -> bool:
    if gold is None or is_absent(gold) or is_absent(predicted):
        return is_absent(gold) and is_absent(predicted)
    values = (gold,) if isinstance(gold, str) else gold
    return predicted in values or (
        any_of and any(predicted in value.split("|") for value in values)
    )

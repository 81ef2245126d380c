"""Joint goal accuracy and slot accuracy of dialogue states, by TRADE's rules."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pid_jax.errors import UserError

# Spellings of an absent slot.
ABSENT_VALUES = frozenset({"none", "not mentioned", ""})

# The correct value, or all correct values.
Values = str | Sequence[str]


def joint_goal_accuracy(
    predictions: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, Values]],
    *,
    slots: int | None = 30,
    any_of: bool = False,
) -> dict[str, float]:
    """Scores cumulative dialogue states turn by turn. Both results are in [0, 1].

    Each element maps slot to value for one user turn. "none", "not mentioned" and "" mean absent,
    on both sides. "dontcare" is a regular value.

    `joint_goal_accuracy` is the share of turns whose sets of (slot, value) pairs are equal by
    exact string. `slot_accuracy` is the mean of (slots - missed - wrong) / slots, where a wrong
    value of a missed slot counts once, and `slots` is the number of slots that the benchmark
    tracks (MultiWOZ: 30). It is 0 for a turn with more mistakes than slots. A prediction for an
    untracked slot is a wrong value. With `slots=None` a turn's slots are those that it names on
    either side, including absent ones, and all slots of all turns have the same weight.

    A reference may list several correct values. With `any_of`, "a", "b" and "a|b" match a
    reference "a|b". Without it, only "a|b" does.

    Raises UserError if the arguments differ in length or are empty, and if the references name
    more than `slots` slots.

    Defined by Wu et al. 2019 (arXiv 1905.08743), `evaluate_metrics` and `compute_acc` of
    models/TRADE.py in jasonwu0731/trade-dst.
    """
    _check(predictions, references)
    tracked = {slot for state in references for slot in state}
    if slots is not None and len(tracked) > slots:
        raise UserError(
            f"the references name {len(tracked)} slots, but slot accuracy is taken over {slots}: "
            f"pass slots={len(tracked)} or more, or leave out untracked slots"
        )

    equal_turns = 0
    right_slots = 0
    all_slots = 0
    for prediction, reference in zip(predictions, references, strict=True):
        mistakes = sum(
            not _right(prediction.get(slot), reference.get(slot), any_of)
            for slot in prediction.keys() | reference.keys()
        )
        of_turn = len(prediction.keys() | reference.keys()) if slots is None else slots
        equal_turns += mistakes == 0
        right_slots += max(of_turn - mistakes, 0)
        all_slots += of_turn

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
    """The share of correct values per slot, in [0, 1], over the turns that name the slot."""
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
    """The share of turns with all slots of a domain correct, in [0, 1], per domain.

    The domain of "hotel-area" is "hotel". Only turns where the domain has a value count, in the
    reference or in the prediction. Most other turns are trivially correct.
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
    """Whether a slot has no value, in any spelling."""
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

"""Joint goal accuracy and slot accuracy of dialogue states, by TRADE's rules."""

from collections.abc import Mapping, Sequence

from pid_jax.errors import UserError

# What a slot that was never mentioned is written as; none of these is a value.
ABSENT_VALUES = frozenset({"none", "not mentioned", ""})


def joint_goal_accuracy(
    predictions: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, str]],
    *,
    slots: int = 30,
    any_of: bool = False,
) -> dict[str, float]:
    """Scores cumulative dialogue states turn by turn, both results in [0, 1].

    Each element maps slot to value for one user turn. "none", "not mentioned" and "" mean
    absent, on both sides; "dontcare" is a value like any other and must be predicted.
    `joint_goal_accuracy` is the share of turns whose sets of (slot, value) pairs are equal by
    exact string. `slot_accuracy` is the mean of (slots - missed - wrong) / slots, where a wrong
    value for a missed slot is not counted twice, and `slots` is how many slots the benchmark
    tracks (MultiWOZ: 30).

    With `any_of`, a reference "a|b" is matched by "a", by "b" and by "a|b"; without, only by
    the whole string.

    Raises UserError if the two differ in length, are empty, or name more than `slots` slots.

    Defined by Wu et al. 2019 (arXiv 1905.08743), `evaluate_metrics` and `compute_acc` of
    models/TRADE.py in jasonwu0731/trade-dst.
    """
    if len(predictions) != len(references):
        raise UserError(
            f"joint goal accuracy needs one prediction for each turn: got {len(predictions)} "
            f"predictions for {len(references)} references"
        )
    if not references:
        raise UserError("joint goal accuracy of no turns is undefined: the references are empty")

    tracked = {slot for state in (*predictions, *references) for slot in state}
    if len(tracked) > slots:
        raise UserError(
            f"the states name {len(tracked)} slots, but slot accuracy is taken over {slots}: "
            f"pass slots={len(tracked)} or more, or leave out the slots that are not tracked"
        )

    equal_turns = 0
    right_slots = 0
    for prediction, reference in zip(predictions, references, strict=True):
        predicted = _present(prediction)
        gold = _present(reference)
        missed = sum(
            not _matches(predicted.get(slot), value, any_of) for slot, value in gold.items()
        )
        wrong = sum(slot not in gold for slot in predicted)
        equal_turns += missed == 0 and wrong == 0
        right_slots += slots - missed - wrong

    return {
        "joint_goal_accuracy": equal_turns / len(references),
        "slot_accuracy": right_slots / (slots * len(references)),
    }


def _present(state: Mapping[str, str]) -> dict[str, str]:
    return {slot: value for slot, value in state.items() if value not in ABSENT_VALUES}


def _matches(predicted: str | None, gold: str, any_of: bool) -> bool:
    if predicted is None:
        return False
    return predicted == gold or (any_of and predicted in gold.split("|"))

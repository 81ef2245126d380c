"""The base of dialogue-state-tracking tasks: one prompt per slot, joint goal accuracy.

Every user turn is one example. Its document is the dialogue up to and including that turn. Its
prompts ask for the value of every slot in the cumulative state, "none" for an absent slot.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.metrics.joint_goal_accuracy import (
    accuracy_per_slot,
    joint_accuracy_per_domain,
    joint_goal_accuracy,
)
from pid_jax.tasks.task import Predictions, Report, prediction_for, target_of

NONE = "none"
DONTCARE = "dontcare"
PROMPT_STYLES = ("slot", "description", "both")
PER_SLOT = "accuracy per slot"
PER_DOMAIN = "joint accuracy per domain, of turns with a value in it"


def document_text(utterances: Iterable[tuple[str, str]]) -> str:
    """One line of lower-case text from (speaker, utterance) pairs, without empty utterances."""
    lines = ((speaker, " ".join(text.lower().split())) for speaker, text in utterances)
    return " ".join(f"[{speaker}] {text}" for speaker, text in lines if text)


class Slot(NamedTuple):
    """A slot of a schema."""

    description: str
    values: tuple[str, ...] = ()
    """All values of a categorical slot."""
    traits: tuple[str, ...] | None = None
    """The traits of its subtasks."""


@dataclass(frozen=True)
class DialogueStateTask(ABC):
    """A Task whose subtasks are slots, called "domain-slot".

    `prompts` selects the prompt of a slot: "slot" (its name, "hotel-area"), "description" (a
    phrase in plain English) or "both" ("hotel-area: ..."). With `closed`, the allowed outputs of
    a categorical slot are its values, "dontcare" and "none". Data sets have some labels outside
    of these, which a model then cannot predict. Raises UserError for an unknown `prompts`.
    """

    prompts: str = "slot"
    closed: bool = False

    negative_target = NONE

    def __post_init__(self) -> None:
        if self.prompts not in PROMPT_STYLES:
            raise UserError(
                f"task option prompts={self.prompts!r}: choose from {', '.join(PROMPT_STYLES)}"
            )

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def slots(self) -> Mapping[str, Slot]:
        """The slots by name, in the order of the prompts.

        Empty for tasks whose examples have different slots.
        """

    @property
    @abstractmethod
    def data_policy(self) -> dict[str, str]:
        """The part of the report's policy that depends on the data."""

    @abstractmethod
    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]: ...

    def right_values(self, subtask: Subtask, target: str) -> tuple[str, ...]:
        """The correct predictions, including the target."""
        return subtask.references or (target,)

    def example(
        self,
        example_id: str,
        document: str,
        state: Mapping[str, str | Sequence[str]],
        slots: Mapping[str, Slot] | None = None,
    ) -> Example:
        """One user turn.

        `state` has the values of the slots that are present. The first of several values is the
        target, and each of them is correct. `slots` replaces the slots of the task.
        """
        slots = self.slots if slots is None else slots
        return Example(
            id=example_id,
            document=document,
            subtasks=tuple(
                self._subtask(name, slot, state.get(name, NONE)) for name, slot in slots.items()
            ),
        )

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """Joint goal accuracy and slot accuracy in [0, 1] over the examples, one per user turn.

        The tables have the accuracy of each slot and the joint accuracy of each domain.
        """
        predicted = [
            {
                subtask.id: prediction_for(predictions, example.id, subtask.id).strip()
                for subtask in example.subtasks
            }
            for example in examples
        ]
        gold = [
            {
                subtask.id: self.right_values(subtask, target_of(example, subtask))
                for subtask in example.subtasks
            }
            for example in examples
        ]
        return Report(
            metrics=joint_goal_accuracy(predicted, gold, slots=None),
            policy={
                **self.data_policy,
                "none": "absent on both sides; empty states are scored",
                "dontcare": "a value that must be predicted",
                **({"answers": "categorical slots limited to their values"} if self.closed else {}),
            },
            tables={
                PER_SLOT: accuracy_per_slot(predicted, gold),
                PER_DOMAIN: joint_accuracy_per_domain(predicted, gold),
            },
        )

    def _prompt(self, slot: str, description: str) -> str:
        if self.prompts == "slot":
            return slot
        return description if self.prompts == "description" else f"{slot}: {description}"

    @cached_property
    def _subtasks(self) -> dict[tuple[str, Slot, tuple[str, ...]], Subtask]:
        return {}

    def _subtask(self, name: str, slot: Slot, values: str | Sequence[str]) -> Subtask:
        # Most turns repeat most slot values, so sharing the objects saves memory.
        right = (values,) if isinstance(values, str) else tuple(values)
        key = (name, slot, right)
        if key not in self._subtasks:
            limited = self.closed and slot.values
            self._subtasks[key] = Subtask(
                id=name,
                prompt=self._prompt(name, slot.description),
                target=right[0],
                allowed=tuple(dict.fromkeys((*slot.values, DONTCARE, NONE))) if limited else None,
                references=right if len(right) > 1 else None,
                traits=slot.traits,
            )
        return self._subtasks[key]

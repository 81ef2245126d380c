"""What all dialogue-state-tracking tasks share: one prompt a slot, joint goal accuracy.

Every user turn is one example. Its document is the dialogue up to and including that turn; it
asks for every slot's value in the cumulative state, "none" where the slot is absent.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.metrics.joint_goal_accuracy import joint_goal_accuracy
from pid_jax.tasks.task import Predictions, Report, prediction_for

NONE = "none"
DONTCARE = "dontcare"
PROMPT_STYLES = ("slot", "description", "both")


def document_text(utterances: Iterable[tuple[str, str]]) -> str:
    """One line of lower-case text from (speaker, utterance) pairs; empty utterances vanish."""
    said = ((speaker, " ".join(text.lower().split())) for speaker, text in utterances)
    return " ".join(f"[{speaker}] {text}" for speaker, text in said if text)


@dataclass(frozen=True)
class DialogueStateTask(ABC):
    """A Task whose subtasks are slots.

    `prompts` says what a slot is asked by: "slot" (its name, "hotel-area"), "description" (a
    phrase in plain English) or "both" ("hotel-area: ..."). `any_of` lets a prediction match any
    one alternative of a label written "a|b"; by default only the whole string is right.
    """

    prompts: str = "slot"
    any_of: bool = False

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
    def descriptions(self) -> Mapping[str, str]:
        """Slot to description, in the order in which the slots are asked."""

    @property
    @abstractmethod
    def data_policy(self) -> dict[str, str]:
        """The part of the report's policy that depends on the data."""

    @abstractmethod
    def examples(self, path: str | Path | None, split: str) -> Iterator[Example]: ...

    def example(self, example_id: str, document: str, state: Mapping[str, str]) -> Example:
        """One user turn; `state` leaves out the absent slots."""
        return Example(
            id=example_id,
            document=document,
            subtasks=tuple(self._subtask(slot, state.get(slot, NONE)) for slot in self._asked),
        )

    def score(self, examples: Sequence[Example], predictions: Predictions) -> Report:
        """Joint goal accuracy and slot accuracy over the examples, each one a user turn."""
        predicted = [
            {
                subtask.id: prediction_for(predictions, example.id, subtask.id).strip()
                for subtask in example.subtasks
            }
            for example in examples
        ]
        gold = [_gold_state(example) for example in examples]
        accuracies = joint_goal_accuracy(
            predicted, gold, slots=len(self.descriptions), any_of=self.any_of
        )
        return Report(
            metrics=accuracies,
            policy={
                **self.data_policy,
                "none": "absent on both sides; empty states are scored",
                "dontcare": "a value that must be predicted",
                "|": (
                    "any one alternative of the label is right"
                    if self.any_of
                    else "the label's whole string is required"
                ),
            },
        )

    @cached_property
    def _asked(self) -> dict[str, str]:
        return {slot: self._prompt(slot, text) for slot, text in self.descriptions.items()}

    def _prompt(self, slot: str, description: str) -> str:
        if self.prompts == "slot":
            return slot
        return description if self.prompts == "description" else f"{slot}: {description}"

    @cached_property
    def _subtasks(self) -> dict[tuple[str, str], Subtask]:
        return {}

    def _subtask(self, slot: str, target: str) -> Subtask:
        # Most turns repeat most slot values: sharing the objects keeps a corpus small.
        key = (slot, target)
        if key not in self._subtasks:
            self._subtasks[key] = Subtask(slot, self._asked[slot], target)
        return self._subtasks[key]


def _gold_state(example: Example) -> dict[str, str]:
    state = {}
    for subtask in example.subtasks:
        if subtask.target is None:
            raise UserError(
                f"subtask {subtask.id!r} of example {example.id!r} has no target to score against"
            )
        state[subtask.id] = subtask.target
    return state

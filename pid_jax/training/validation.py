"""Validation during training: teacher-forced metrics over a whole split."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from pid_jax.data.batching import Batch
from pid_jax.data.packing import PackedBatch
from pid_jax.distributed.rows import placed
from pid_jax.programs import CompiledFunction
from pid_jax.training.mixed_batches import PartEvaluation
from pid_jax.training.stop_signals import StopSignals


class Totals(NamedTuple):
    """Sums over validation examples."""

    loss: float = 0.0
    correct_tokens: float = 0.0
    target_tokens: float = 0.0
    subtasks: int = 0
    correct_subtasks: int = 0
    documents: int = 0
    correct_documents: int = 0

    def plus(self, others: "Totals") -> "Totals":
        """The sums with those of further examples."""
        return Totals(*map(operator.add, self, others))

    def metrics(self) -> dict[str, float]:
        """Means of the sums, by the names of `evaluate_parts`."""
        return {
            "loss": self.loss / self.target_tokens,
            "token_accuracy": self.correct_tokens / self.target_tokens,
            "exact_match": self.correct_subtasks / self.subtasks,
            "joint_exact_match": self.correct_documents / self.documents,
        }


def evaluate_parts(
    params: Any,
    parts: Sequence[PartEvaluation],
    evaluation_step: CompiledFunction,
    rows: jax.sharding.NamedSharding,
    stop: StopSignals | None,
) -> dict[str, float] | None:
    """Teacher-forced metrics over all parts, and those of each part as "NAME/loss" and so on.

    The metrics are loss (nats per target token), token_accuracy, exact_match (share of targets
    that greedy decoding yields) and joint_exact_match (share of documents with all targets
    correct). A single part has no metrics of its own. rows: the sharding of a batch. The batches
    have the rows of this process. stop: checked before each batch, None to ignore signals. Returns
    None after a stop signal.
    """
    whole = Totals()
    of_parts: dict[str, float] = {}
    for part in parts:
        totals = _totals(params, part.batches, part.subtask_counts, evaluation_step, rows, stop)
        if totals is None:
            return None
        whole = whole.plus(totals)
        of_parts |= {f"{part.name}/{name}": value for name, value in totals.metrics().items()}
    return {**whole.metrics(), **(of_parts if len(parts) > 1 else {})}


def _totals(
    params: Any,
    batches: Iterable[Batch | PackedBatch],
    subtask_counts: Iterable[int],
    evaluation_step: CompiledFunction,
    rows: jax.sharding.NamedSharding,
    stop: StopSignals | None,
) -> Totals | None:
    totals = Totals()
    counts = iter(subtask_counts)
    count = next(counts, None)
    for batch in batches:
        if stop is not None and stop.requested:
            return None
        on_device = placed(batch, rows)
        figures = jax.device_get(evaluation_step(params, on_device, label=on_device.shape))
        # Row by row, this is the order of the examples and their subtasks, also under PiE.
        correct = figures.correct[figures.present]
        documents = correct_documents = start = 0
        while count is not None and start + count <= len(correct):
            documents += 1
            correct_documents += bool(correct[start : start + count].all())
            start += count
            count = next(counts, None)
        totals = totals.plus(
            Totals(
                float(figures.loss),
                float(figures.correct_tokens),
                float(figures.target_tokens),
                len(correct),
                int(correct.sum()),
                documents,
                correct_documents,
            )
        )
    return totals

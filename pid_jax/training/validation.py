"""Validation during training: teacher-forced metrics over a whole split."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pid_jax.data.batching import Batch
from pid_jax.data.packing import PackedBatch
from pid_jax.distributed.rows import placed
from pid_jax.programs import CompiledFunction
from pid_jax.training.stop_signals import StopSignals


def evaluate(
    params: Any,
    batches: Iterator[Batch | PackedBatch],
    subtask_counts: np.ndarray,
    evaluation_step: CompiledFunction,
    rows: jax.sharding.NamedSharding,
    stop: StopSignals | None,
) -> dict[str, float] | None:
    """Teacher-forced metrics over all `batches`, or None after a stop signal.

    The metrics are loss (nats per target token), token_accuracy, exact_match (share of targets
    that greedy decoding yields) and joint_exact_match (share of documents with all targets
    correct). subtask_counts: number of subtasks per document, in the order of the batches. rows:
    the sharding of a batch. The batches have the rows of this process. stop: checked before each
    batch, None to ignore signals.
    """
    loss = correct_tokens = target_tokens = 0.0
    correct = []
    for batch in batches:
        if stop is not None and stop.requested:
            return None
        on_device = placed(batch, rows)
        figures = jax.device_get(evaluation_step(params, on_device, label=on_device.shape))
        loss += float(figures.loss)
        correct_tokens += float(figures.correct_tokens)
        target_tokens += float(figures.target_tokens)
        # Row by row, this is the order of the examples, each with all its subtasks, also under PiE.
        correct.append(figures.correct[figures.present])
    every = np.concatenate(correct)
    ends = np.cumsum(subtask_counts)
    joint = [
        every[end - count : end].all() for end, count in zip(ends, subtask_counts, strict=True)
    ]
    return {
        "loss": loss / target_tokens,
        "token_accuracy": correct_tokens / target_tokens,
        "exact_match": float(every.mean()),
        "joint_exact_match": float(np.mean(joint)),
    }

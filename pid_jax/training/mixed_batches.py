"""The batches of a run: those of each part of its mixture, every batch of one part."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from pid_jax.data import pipeline
from pid_jax.data.batching import Batch, BatchShape
from pid_jax.data.mixing import Turns, mixed
from pid_jax.data.packing import PackedBatch, PackedShape
from pid_jax.data.token_source import TokenSource
from pid_jax.data.tokenizing import Tokenizer
from pid_jax.models.protocol import EncoderDecoder
from pid_jax.training import assembly, mixture


class PartEvaluation(NamedTuple):
    """The validation data of a part of the mixture."""

    name: str
    batches: Iterable[Batch | PackedBatch]
    """Every iteration is another pass."""
    subtask_counts: Iterable[int]
    """Of each document, in the order of the batches."""


def training_batches(
    config: ConfigDict,
    sources: Sequence[TokenSource],
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    own_rows: pipeline.OwnRows = np.arange,
) -> Any:
    """The endless Grain iterator of a run's batches.

    sources: of the parts of the mixture, in their order. own_rows: the rows that this process has
    of a batch.
    """
    streams = [
        assembly.training_stream(part.config, source, model, tokenizer, own_rows)
        for part, source in zip(mixture.parts(config), sources, strict=True)
    ]
    return pipeline.iterated(mixed(streams, _turns(config)))


def task_of_steps(config: ConfigDict) -> Callable[[int], str | None]:
    """The name of the part that a training step has, from 1. None without a mixture."""
    if not config.data.mixture:
        return lambda step: None
    names, turns = [part.name for part in mixture.parts(config)], _turns(config)
    return lambda step: names[turns.of(step - 1).stream] if len(names) > 1 else None


def _turns(config: ConfigDict) -> Turns:
    return Turns([part.weight for part in mixture.parts(config)], config.seed)


def evaluation_batches(
    config: ConfigDict,
    sources: Mapping[str, TokenSource],
    model: EncoderDecoder,
    own_rows: pipeline.OwnRows = np.arange,
) -> list[PartEvaluation]:
    """The validation batches of each part. sources: by the names of the parts."""
    return [
        PartEvaluation(
            part.name,
            assembly.evaluation_batches(part.config, sources[part.name], model, own_rows),
            sources[part.name].subtask_counts,
        )
        for part in mixture.parts(config)
    ]


def largest_batches(
    config: ConfigDict,
    train: Sequence[TokenSource],
    validation: Sequence[TokenSource],
    model: EncoderDecoder,
) -> tuple[list[BatchShape | PackedShape], list[BatchShape | PackedShape]]:
    """The largest shapes of training and of validation batches, one for each part.

    Which of them needs most memory is known after compilation: long documents of one part may need
    more than many decoder tokens of another.
    """
    configs = [part.config for part in mixture.parts(config)]

    def largest(
        sources: Sequence[TokenSource], *, evaluation: bool
    ) -> list[BatchShape | PackedShape]:
        shapes = [
            assembly.largest_batch(of_part, source, model, evaluation=evaluation)
            for of_part, source in zip(configs, sources, strict=True)
        ]
        return list(dict.fromkeys(shapes))

    return largest(train, evaluation=False), largest(validation, evaluation=True)

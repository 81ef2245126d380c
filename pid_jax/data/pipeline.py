"""From tokenized examples to a stream of batches: what is drawn, in which order, how shaped."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import grain
import numpy as np
from jaxtyping import Int

from pid_jax.data.batching import Batch, BatchShape, bucket, collate, shape_of
from pid_jax.data.tokenizing import TokenizedExample, TokenizedExamples
from pid_jax.errors import UserError

Arrange = Callable[[Sequence[TokenizedExample]], Sequence[TokenizedExample]]


def as_they_are(examples: Sequence[TokenizedExample]) -> Sequence[TokenizedExample]:
    return examples


def training_batches(
    source: TokenizedExamples,
    *,
    batch_size: int,
    seed: int,
    pad_token_id: int,
    decoder_start_token_id: int,
    max_prompts: int | None = None,
    negative_target: Sequence[int] | None = None,
    negative_rate: float = 1.0,
    arrange: Arrange = as_they_are,
    document_multiple: int = 64,
    window: int = 16,
    threads: int = 1,
    prefetch: int = 4,
) -> grain.DatasetIterator[Batch]:
    """An endless, shuffled stream of batches whose position can be saved and restored.

    An epoch visits every example once; its last batch is filled up with others of that epoch.
    Batches hold documents of similar length: `window` batches at a time are sorted by length,
    cut, and put back in random order.

    Of a document's subtasks, those whose target is `negative_target` (token ids, end token
    included) are each kept with probability `negative_rate`; of what remains, at most
    `max_prompts` are drawn. At least one is always kept.

    `arrange` turns the drawn examples of a batch into those that are collated. It must not
    give more, or longer, examples for shorter ones: `batch_shapes` relies on that.

    Batch n is a function of the source, the options and n alone, whatever `threads` and
    `prefetch` are. `get_state`, `set_state` and Orbax's checkpointables are exact: nothing is
    skipped or repeated.

    Raises UserError if an example has no subtask, or a subtask no target.
    """
    shapes = batch_shapes(
        source,
        batch_size=batch_size,
        max_prompts=max_prompts,
        arrange=arrange,
        document_multiple=document_multiple,
    )
    plan = _TrainingPlan(
        source,
        batch_size=batch_size,
        seed=seed,
        max_prompts=max_prompts,
        negative_target=negative_target,
        negative_rate=negative_rate,
        window=window,
    )

    def batch(step: int) -> Batch:
        examples = arrange(plan.examples(step))
        return collate(
            examples,
            _fitting(shapes, examples),
            pad_token_id=pad_token_id,
            decoder_start_token_id=decoder_start_token_id,
        )

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.range(_ENDLESS).map(batch).to_iter_dataset(options))


def evaluation_batches(
    source: TokenizedExamples,
    *,
    batch_size: int,
    pad_token_id: int,
    decoder_start_token_id: int,
    arrange: Arrange = as_they_are,
    document_multiple: int = 64,
) -> Iterator[Batch]:
    """Every example once, in order, with all of its subtasks.

    The last batch is filled up with absent documents, so that row r of batch b is example
    `b * batch_size + r` (unless `arrange` makes it otherwise).
    """
    shapes = batch_shapes(
        source, batch_size=batch_size, arrange=arrange, document_multiple=document_multiple
    )
    for start in range(0, len(source), batch_size):
        examples = arrange(source[start : start + batch_size])
        yield collate(
            examples,
            _fitting(shapes, examples),
            pad_token_id=pad_token_id,
            decoder_start_token_id=decoder_start_token_id,
        )


def batch_shapes(
    source: TokenizedExamples,
    *,
    batch_size: int,
    max_prompts: int | None = None,
    arrange: Arrange = as_they_are,
    document_multiple: int = 64,
) -> tuple[BatchShape, ...]:
    """Every shape that batches of this source can have, the smallest first.

    They differ in `document_tokens` alone, and their number bounds the compilations of a run.
    Give `max_prompts` as to `training_batches`; `evaluation_batches` have all prompts.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is at least 1, not {batch_size}")
    if max_prompts is not None and max_prompts < 1:
        raise UserError(f"max_prompts is at least 1, not {max_prompts}")
    if not len(source):
        raise UserError("there are no examples: an empty file, or a wrong split?")
    # At least one, so that an arrangement by prompts has something to arrange.
    prompts = max(1, int(source.subtask_counts.max()))
    if max_prompts is not None:
        prompts = min(prompts, max_prompts)
    largest = _filled(
        int(source.document_lengths.max()), prompts, source.longest_prompt, source.longest_target
    )
    smallest = _filled(int(source.document_lengths.min()), 1, 0, 0)
    arranged = arrange([largest] * batch_size)
    shape = replace(
        shape_of(arranged, document_multiple=document_multiple),
        # These two are the user's own, or the data's: rounding them up would only pad.
        documents=len(arranged),
        prompts=max(len(example.prompts) for example in arranged),
    )
    lengths = [shape_of(arrange([smallest]), document_multiple=document_multiple).document_tokens]
    while lengths[-1] < shape.document_tokens:
        lengths.append(bucket(lengths[-1] + 1, multiple=document_multiple))
    return tuple(replace(shape, document_tokens=length) for length in lengths)


_ENDLESS = 2**40  # batches: Grain wants a length


class _TrainingPlan:
    """Which examples, and which of their subtasks, make up batch n."""

    def __init__(
        self,
        source: TokenizedExamples,
        *,
        batch_size: int,
        seed: int,
        max_prompts: int | None,
        negative_target: Sequence[int] | None,
        negative_rate: float,
        window: int,
    ) -> None:
        _check_trainable(source)
        if not 0 <= negative_rate <= 1:
            raise UserError(f"negative_rate is a probability, from 0 to 1, not {negative_rate}")
        if seed < 0:
            raise UserError(f"seed is at least 0, not {seed}")
        if window < 1:
            raise UserError(f"window is at least 1 batch, not {window}")
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._max_prompts = max_prompts
        self._negative_rate = negative_rate
        self._negative = None if negative_target is None else source.targets_equal(negative_target)
        self._window = window
        self._steps_per_epoch = -(-len(source) // batch_size)
        self._latest = (-1, np.zeros((0, batch_size), np.int64))

    def examples(self, step: int) -> list[TokenizedExample]:
        epoch, place = divmod(step, self._steps_per_epoch)
        # Two threads may compute the same order at the turn of an epoch; neither sees half
        # of the other's.
        latest = self._latest
        if latest[0] != epoch:
            latest = self._latest = (epoch, self._order(epoch))
        random = np.random.default_rng([self._seed, 1, step])
        return [
            self._source.select(index, self._subtasks(index, random))
            for index in latest[1][place].tolist()
        ]

    def _order(self, epoch: int) -> Int[np.ndarray, "steps documents"]:
        """The examples of each batch of an epoch."""
        random = np.random.default_rng([self._seed, 0, epoch])
        order = np.resize(
            random.permutation(len(self._source)), self._steps_per_epoch * self._batch_size
        )
        batches = []
        for start in range(0, len(order), self._window * self._batch_size):
            window = order[start : start + self._window * self._batch_size]
            by_length = np.argsort(self._source.document_lengths[window], kind="stable")
            batches.append(random.permutation(window[by_length].reshape(-1, self._batch_size)))
        return np.concatenate(batches)

    def _subtasks(self, index: int, random: np.random.Generator) -> Int[np.ndarray, " chosen"]:
        """The subtasks of an example that this batch asks, in their own order."""
        everyone = self._source.subtask_range(index)
        count = everyone.stop - everyone.start
        if self._negative is None:
            kept = np.arange(count)
        else:
            lucky = random.random(count) < self._negative_rate
            kept = np.flatnonzero(~self._negative[everyone] | lucky)
            if not len(kept):
                kept = random.integers(count, size=1)
        if self._max_prompts is not None and len(kept) > self._max_prompts:
            drawn = np.argsort(random.random(len(kept)))[: self._max_prompts]
            kept = kept[np.sort(drawn)]
        return kept


def _check_trainable(source: TokenizedExamples) -> None:
    (without_subtask,) = np.nonzero(source.subtask_counts == 0)
    if len(without_subtask):
        raise UserError(
            f"example {source.ids[without_subtask[0]]!r} has no subtask, so nothing can be learned "
            f"from it ({len(without_subtask)} of {len(source)} examples): remove such examples"
        )
    without_target = source.without_target()
    if without_target.any():
        ends = np.cumsum(source.subtask_counts)
        index = int(np.searchsorted(ends, np.flatnonzero(without_target)[0], side="right"))
        raise UserError(
            f"example {source.ids[index]!r} has a subtask without a target "
            f"({int(without_target.sum())} of {len(without_target)} subtasks): "
            "training needs a target for every subtask"
        )


def _filled(document: int, prompts: int, prompt: int, target: int) -> TokenizedExample:
    """An example of these sizes, whose tokens do not matter."""
    return TokenizedExample("", [0] * document, [[0] * prompt] * prompts, [[0] * target] * prompts)


def _fitting(shapes: Sequence[BatchShape], examples: Sequence[TokenizedExample]) -> BatchShape:
    longest = max((len(example.document) for example in examples), default=0)
    # If none fits, collate says what is wrong.
    return next((shape for shape in shapes if shape.document_tokens >= longest), shapes[-1])

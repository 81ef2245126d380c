"""Batch streams for training and evaluation: sampling, order and shapes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import grain
import numpy as np
from jaxtyping import Int

from pid_jax.data import packed_batches
from pid_jax.data.batching import Batch, BatchShape, bucket, collate, shape_of
from pid_jax.data.packed_batches import Drawn, OwnRows
from pid_jax.data.packing import PackedBatch, PackedShape
from pid_jax.data.row_shapes import RowShape
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
    own_rows: OwnRows = np.arange,
    packing: bool = False,
    document_multiple: int = 64,
    window: int = 16,
    threads: int = 1,
    prefetch: int = 4,
) -> grain.DatasetIterator[Batch | PackedBatch]:
    """An endless, shuffled stream of batches whose position can be saved and restored.

    An epoch visits every example once. Other examples of the epoch fill its last batch. To form
    batches with little padding, every `window` batches are sorted by the padded length of their
    documents, then by the decoder tokens that an example is expected to have, split, and shuffled.

    A subtask whose target is `negative_target` (token ids, with the end token) is included with
    probability `negative_rate`. At most `max_prompts` of the included subtasks are drawn, and at
    least one.

    `arrange` maps the drawn examples of a batch to the collated ones. For shorter examples it must
    not return more or longer ones, because `batch_shapes` calls it with the largest sizes.

    `own_rows` are the rows that a batch has in this process. The shape is that of the whole batch.
    Without an arrangement the process reads the documents of its rows only.

    packing: several prompts of a document share a decoder row (`pid_jax.data.packing`). The
    examples and subtasks of batch n are the same. Not with an arrangement.

    Batch n depends on the source, the options and n only, not on `threads` and `prefetch`.
    `get_state`, `set_state` and Orbax's checkpointables are exact: they skip and repeat nothing.

    Raises UserError for an example without subtasks, a subtask without a target, and options
    out of range.
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
        document_multiple=document_multiple,
    )
    rows = None
    if packing:
        rows = packed_batches.row_shapes_of(source, plan.sampled(), max_prompts)

    def batch(step: int) -> Batch | PackedBatch:
        return _collated(
            source,
            plan.drawn(step),
            shapes,
            arrange,
            own_rows,
            rows,
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
    own_rows: OwnRows = np.arange,
    packing: bool = False,
    document_multiple: int = 64,
) -> Iterator[Batch | PackedBatch]:
    """Every example once, in order, with all of its subtasks.

    Absent documents fill the last batch. Row r of batch b is example `b * batch_size + r`,
    unless `arrange` changes the rows. own_rows, packing: as in `training_batches`. Raises UserError
    for an empty source.
    """
    shapes = batch_shapes(
        source, batch_size=batch_size, arrange=arrange, document_multiple=document_multiple
    )
    counts = source.subtask_counts
    starts = range(0, len(source), batch_size)

    def drawn(start: int) -> list[Drawn]:
        indices = range(len(source))[start : start + batch_size]
        return [(index, np.arange(counts[index])) for index in indices]

    rows = None
    if packing:
        sampled = starts[:: -(-len(starts) // packed_batches.SAMPLED)]
        rows = packed_batches.row_shapes_of(source, map(drawn, sampled), None)
    for start in starts:
        yield _collated(
            source,
            drawn(start),
            shapes,
            arrange,
            own_rows,
            rows,
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

    The shapes differ in `document_tokens` only. Their number bounds the compilations of a run.
    Pass the `max_prompts` of `training_batches`, or None for `evaluation_batches`. Raises
    UserError for an empty source and for sizes below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is at least 1, not {batch_size}")
    if max_prompts is not None and max_prompts < 1:
        raise UserError(f"max_prompts is at least 1, not {max_prompts}")
    if not len(source):
        raise UserError("there are no examples: an empty file, or a wrong split?")
    # At least one, because an arrangement by prompts needs a prompt.
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
        # Constant over the run, so rounding them up would only add padding.
        documents=len(arranged),
        prompts=max(len(example.prompts) for example in arranged),
    )
    lengths = [shape_of(arrange([smallest]), document_multiple=document_multiple).document_tokens]
    while lengths[-1] < shape.document_tokens:
        lengths.append(bucket(lengths[-1] + 1, multiple=document_multiple))
    return tuple(replace(shape, document_tokens=length) for length in lengths)


def largest_packed_shape(
    source: TokenizedExamples,
    *,
    batch_size: int,
    max_prompts: int | None = None,
    document_multiple: int = 64,
) -> PackedShape:
    """The shape that every packed batch of this source fits.

    The arguments and errors are those of `batch_shapes`.
    """
    largest = batch_shapes(
        source,
        batch_size=batch_size,
        max_prompts=max_prompts,
        document_multiple=document_multiple,
    )[-1]
    rows = packed_batches.largest_row_shape(source, max_prompts)
    return packed_batches.packed_shapes([largest], [rows])[0]


_ENDLESS = 2**40  # batches, because Grain needs a length


def _collated(
    source: TokenizedExamples,
    drawn: Sequence[Drawn],
    shapes: Sequence[BatchShape],
    arrange: Arrange,
    own_rows: OwnRows,
    row_shapes: Sequence[RowShape] | None,
    *,
    pad_token_id: int,
    decoder_start_token_id: int,
) -> Batch | PackedBatch:
    """The own rows of a batch, with the sizes that the whole batch needs.

    row_shapes: those of packed batches, None to pack nothing.
    """
    rows = own_rows(shapes[0].documents).tolist()
    if arrange is as_they_are:
        longest = max((int(source.document_lengths[index]) for index, _ in drawn), default=0)
        if row_shapes is not None:
            return packed_batches.collated(
                source,
                drawn,
                _fitting(shapes, longest).document_tokens,
                row_shapes,
                rows,
                pad_token_id=pad_token_id,
                decoder_start_token_id=decoder_start_token_id,
            )
        examples = [source.select(*drawn[row]) for row in rows if row < len(drawn)]
    else:
        arranged = arrange([source.select(*one) for one in drawn])
        longest = max((len(example.document) for example in arranged), default=0)
        examples = [arranged[row] for row in rows if row < len(arranged)]
    return collate(
        examples,
        replace(_fitting(shapes, longest), documents=len(rows)),
        pad_token_id=pad_token_id,
        decoder_start_token_id=decoder_start_token_id,
    )


class _TrainingPlan:
    """Draws the examples of batch n and their subtasks."""

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
        document_multiple: int,
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
        self._document_multiple = document_multiple
        self._steps_per_epoch = -(-len(source) // batch_size)
        self._latest = (-1, np.zeros((0, batch_size), np.int64))

    def drawn(self, step: int) -> "list[Drawn]":
        epoch, step_of_epoch = divmod(step, self._steps_per_epoch)
        # At the start of an epoch two threads may compute the same order. The assignment is
        # atomic, so neither reads a partial result.
        latest = self._latest
        if latest[0] != epoch:
            latest = self._latest = (epoch, self._order(epoch))
        random = np.random.default_rng([self._seed, 1, step])
        return [
            (index, self._subtasks(index, random)) for index in latest[1][step_of_epoch].tolist()
        ]

    def sampled(self) -> "Iterator[list[Drawn]]":
        """Evenly spaced batches of the first epoch, or of the first few if it is short."""
        steps = np.linspace(
            0, max(self._steps_per_epoch, packed_batches.SAMPLED) - 1, packed_batches.SAMPLED
        )
        return map(self.drawn, steps.astype(int).tolist())

    def _order(self, epoch: int) -> Int[np.ndarray, "steps documents"]:
        """The indices of the examples of each batch of an epoch."""
        random = np.random.default_rng([self._seed, 0, epoch])
        order = np.resize(
            random.permutation(len(self._source)), self._steps_per_epoch * self._batch_size
        )
        batches = []
        for start in range(0, len(order), self._window * self._batch_size):
            window = order[start : start + self._window * self._batch_size]
            lengths = self._source.document_lengths[window].tolist()
            padded = [bucket(length, multiple=self._document_multiple) for length in lengths]
            expected = [self._expected_tokens(index) for index in window.tolist()]
            by_length = np.lexsort((expected, padded))
            batches.append(random.permutation(window[by_length].reshape(-1, self._batch_size)))
        return np.concatenate(batches)

    def _expected_tokens(self, index: int) -> float:
        """The decoder tokens that an example has in a batch on average."""
        subtasks = self._source.subtask_range(index)
        count = subtasks.stop - subtasks.start
        tokens = np.sum(self._source.subtask_lengths(index, np.arange(count)), axis=0)
        included = np.ones(count)
        if self._negative is not None:
            included[self._negative[subtasks]] = self._negative_rate
        drawn = included.sum()
        most = drawn if self._max_prompts is None else min(drawn, self._max_prompts)
        return float(tokens @ included * most / max(drawn, 1))

    def _subtasks(self, index: int, random: np.random.Generator) -> Int[np.ndarray, " chosen"]:
        """The indices of an example's subtasks in this batch, ascending."""
        subtasks = self._source.subtask_range(index)
        count = subtasks.stop - subtasks.start
        if self._negative is None:
            included = np.arange(count)
        else:
            sampled = random.random(count) < self._negative_rate
            included = np.flatnonzero(~self._negative[subtasks] | sampled)
            if not len(included):
                included = random.integers(count, size=1)
        if self._max_prompts is not None and len(included) > self._max_prompts:
            drawn = np.argsort(random.random(len(included)))[: self._max_prompts]
            included = included[np.sort(drawn)]
        return included


def _check_trainable(source: TokenizedExamples) -> None:
    (without_subtask,) = np.nonzero(source.subtask_counts == 0)
    if len(without_subtask):
        raise UserError(
            f"example {source.ids[without_subtask[0]]!r} has no subtask, so training cannot use "
            f"it ({len(without_subtask)} of {len(source)} examples): remove such examples"
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
    """An example of these sizes with arbitrary tokens."""
    return TokenizedExample("", [0] * document, [[0] * prompt] * prompts, [[0] * target] * prompts)


def _fitting(shapes: Sequence[BatchShape], longest: int) -> BatchShape:
    """The smallest shape for documents of at most `longest` tokens."""
    # If none fits, collate raises the error.
    return next((shape for shape in shapes if shape.document_tokens >= longest), shapes[-1])

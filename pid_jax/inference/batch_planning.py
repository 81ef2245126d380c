"""Which documents share a batch, and the padded shape of each batch.

Each shape takes three compiled programs, and padding takes time in every batch. The documents of a
call form a few classes of similar sizes, each with one shape. Shapes that are compiled already are
used again while the padding costs less than another compilation. A batch that the documents of its
class do not fill takes smaller documents as well.
"""

import math
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from pid_jax.backends.settings import current_platform
from pid_jax.data.batching import DOCUMENT_MULTIPLE, BatchShape, bucket, bucket_below
from pid_jax.data.packing import lengths_of, pack
from pid_jax.data.tokenizing import TokenizedExample

ExampleSize = tuple[int, int, int, int]
"""Document tokens, prompts, prompt tokens with the start token, tokens of an output. For scoring:
document tokens, packed rows, tokens of a row, target tokens of all prompts together."""

SCORED_ROW_TOKENS = 256
"""Prompts to be scored are packed into rows of about so many tokens, or of the longest segment."""


@dataclass(frozen=True)
class BatchLimits:
    """What bounds a batch, and the number of shapes."""

    tokens: int
    """Of documents, prompts and outputs, padding included, in one batch."""
    documents: int | None = None
    shapes: int = 8
    """Classes of documents in one call, unless more of them repay their compilation."""
    tokens_per_shape: int = 4096
    """The least padding that a class has to save, if it is one of so few."""
    steps_per_octave: int = 8
    """How finely sizes are rounded up: so many sizes between a power of two and the next."""
    tokens_per_compilation: int = 32768
    """Padding that takes about the time of compiling the programs of a shape."""
    tokens_per_step: int = 64
    """What a step of decoding takes, in tokens, however few rows it has: reading the weights."""

    @classmethod
    def by_default(cls, tokens: int | None = None, documents: int | None = None) -> "BatchLimits":
        """Those of this process's backend.

        Beside the speed of an accelerator a compilation costs more: larger batches, fewer shapes,
        coarser sizes.
        """
        if current_platform() == "cpu":
            return cls(tokens or 4096, documents)
        return cls(
            tokens or 65536,
            documents,
            shapes=4,
            tokens_per_shape=16384,
            steps_per_octave=2,
            tokens_per_compilation=1 << 20,
            tokens_per_step=512,
        )


@dataclass(frozen=True)
class PlannedBatch:
    """The examples of a batch, by index, and its padded shape."""

    examples: tuple[int, ...]
    shape: BatchShape
    """`prompts` are those decoded at once, `target_tokens` is the length of the output arrays. For
    scoring the sizes are those of packed rows, see `ExampleSize`."""
    parts: int = 1
    """Above 1 a document has more prompts than are decoded at once: its encoding serves all."""
    same_shape_after: int = 0
    """The later batches of the call that have the same shape."""
    row_tokens: tuple[int, ...] = ()
    """For scoring: a length of rows with which each example fits."""


class BatchPlanner:
    """Plans batches; remembers how much padding the reuse of larger shapes has cost."""

    def __init__(self) -> None:
        self._padding: Counter[ExampleSize] = Counter()

    def plan(
        self,
        examples: Sequence[TokenizedExample],
        limits: BatchLimits,
        *,
        new_tokens: int | Sequence[int] | None,
        num_beams: int = 1,
        devices: int = 1,
        compiled: Collection[BatchShape] = (),
        sort: bool = True,
    ) -> list[PlannedBatch]:
        """Batches of all examples that have prompts, the largest first.

        new_tokens: of an output, for all examples or for each. None to score the examples' own
        targets, in packed rows.
        num_beams: rows of a prompt. devices: fewer documents than fill a batch on each are
        distributed. compiled: shapes that need no compilation. sort: False maintains the order of
        the documents.

        A batch has at most `limits.tokens` unless one document alone exceeds them. If the prompts
        of one document exceed them, they are decoded in parts. The largest batches come first: if
        memory does not suffice, that shows at once.
        """
        prompted = [index for index, example in enumerate(examples) if example.prompts]
        if not prompted:
            return []
        known = list(compiled)
        share = math.ceil(len(prompted) / devices)
        layout = _Layout(limits, new_tokens is not None, num_beams, share)
        packed: dict[int, int] = {}
        if new_tokens is None:
            rows = {index: len(layout.packed(examples[index])) for index in prompted}
            sizes = {index: layout.packed_size_of(examples[index]) for index in prompted}
            packed = {index: layout.row_tokens(examples[index]) for index in prompted}
        else:
            rows = {index: len(examples[index].prompts) for index in prompted}
            if isinstance(new_tokens, int):
                length = _output_length(new_tokens, limits, compiled)
                known = [shape for shape in compiled if shape.target_tokens == length]
                lengths = dict.fromkeys(prompted, length)
            else:
                lengths = {i: _rounded(max(new_tokens[i], 1), limits) for i in prompted}
            sizes = {index: layout.size_of(examples[index], lengths[index]) for index in prompted}
        shapes = self._shapes(sizes, layout, known)
        cut = layout.filled(sizes, shapes) if sort else layout.in_order(sizes, shapes)
        return [
            PlannedBatch(
                taken,
                shape,
                max(math.ceil(rows[index] / shape.prompts) for index in taken),
                row_tokens=tuple(packed[index] for index in taken) if packed else (),
            )
            for taken, shape in cut
        ]

    def _shapes(
        self, sizes: dict[int, ExampleSize], layout: "_Layout", compiled: Sequence[BatchShape]
    ) -> dict[ExampleSize, BatchShape]:
        """For each size its class's shape, or a compiled one where that costs less."""
        classes = layout.classes(Counter(sizes.values()))
        shapes = {}
        for own, count in Counter(classes[size] for size in sizes.values()).items():
            shape = layout.shape(own, count)
            fitting = [
                (layout.cost(other, count), -other.documents, str(other), other)
                for other in compiled
                if layout.admits(other, own)
            ]
            if shape not in compiled and fitting:
                cost, *_, other = min(fitting)
                spent = self._padding[own] + max(cost - layout.cost(shape, count), 0)
                if spent <= layout.limits.tokens_per_compilation:
                    self._padding[own] = spent
                    shape = other
            shapes[own] = shape
        return {size: shapes[own] for size, own in classes.items()}


def scored_size(example: TokenizedExample, limits: BatchLimits) -> ExampleSize:
    """The size that scoring an example alone has."""
    return _Layout(limits, False, 1, 1).packed_size_of(example)


Cut = list[tuple[tuple[int, ...], BatchShape]]


@dataclass(frozen=True)
class _Layout:
    limits: BatchLimits
    decoding: bool
    """False for scoring, which reads all targets in one call."""
    num_beams: int
    share: int
    """The most documents that a device should take at once."""

    def size_of(self, example: TokenizedExample, output_tokens: int) -> ExampleSize:
        """The example's own size, rounded up; of prompts, those decoded at once.

        output_tokens: the length of the output arrays.
        """
        prompt_tokens = _rounded(1 + max(map(len, example.prompts)), self.limits)
        each = self.num_beams * (prompt_tokens + output_tokens)
        at_once = max(bucket_below(self.limits.tokens // each), 1)
        count = len(example.prompts)
        parts = math.ceil(count / at_once)
        return (
            _rounded(len(example.document), self.limits, multiple=DOCUMENT_MULTIPLE),
            _rounded(math.ceil(count / parts), self.limits),
            prompt_tokens,
            output_tokens,
        )

    def row_tokens(self, example: TokenizedExample) -> int:
        """The tokens of a packed row of the example."""
        segments = lengths_of(example).segments
        longest, total = int(segments.max()), int(segments.sum())
        return _rounded(max(longest, min(total, SCORED_ROW_TOKENS)), self.limits)

    def packed(self, example: TokenizedExample) -> list[list[int]]:
        """The packed rows of the example, at least one."""
        return pack(lengths_of(example).segments.tolist(), self.row_tokens(example)) or [[]]

    def packed_size_of(self, example: TokenizedExample) -> ExampleSize:
        """The example's own size for scoring, rounded up; of rows, those scored at once."""
        row_tokens, rows = self.row_tokens(example), len(self.packed(example))
        parts = math.ceil(rows / max(bucket_below(self.limits.tokens // row_tokens), 1))
        return (
            _rounded(len(example.document), self.limits, multiple=DOCUMENT_MULTIPLE),
            _rounded(math.ceil(rows / parts), self.limits),
            row_tokens,
            _rounded(sum(map(len, example.targets)), self.limits),
        )

    def tokens(self, size: ExampleSize) -> int:
        """Of one document of this size, with prompts and outputs."""
        return int(self.tokens_of(np.array(size)))

    def tokens_of(self, sizes: Int[np.ndarray, "*N 4"]) -> Int[np.ndarray, "*N"]:
        """Of one document of each of these sizes."""
        of_row = sizes[..., 2] + sizes[..., 3] * self.decoding
        return sizes[..., 0] + sizes[..., 1] * self.num_beams * of_row

    def shape(self, size: ExampleSize, count: int) -> BatchShape:
        """The shape for `count` documents of this size, evenly filled."""
        most = min(max(self.limits.tokens // self.tokens(size), 1), self.share)
        if self.limits.documents is not None:
            most = min(most, self.limits.documents)
        most = bucket_below(most)
        even = math.ceil(count / math.ceil(count / most))
        return BatchShape(min(_rounded(even, self.limits), most), *size)

    def cost(self, shape: BatchShape, count: int) -> int:
        """What batches of this shape take for `count` documents, in tokens."""
        steps = 2 + (shape.target_tokens if self.decoding else 0)
        each = shape.documents * self.tokens(_size(shape)) + steps * self.limits.tokens_per_step
        return math.ceil(count / shape.documents) * each

    def admits(self, shape: BatchShape, size: ExampleSize) -> bool:
        """Whether documents of this size may be decoded at this shape, within the limits."""
        return _fits(size, shape) and (
            shape.documents == 1
            or (
                shape.documents <= (self.limits.documents or shape.documents)
                and shape.documents * self.tokens(_size(shape)) <= self.limits.tokens
            )
        )

    def most_padding(self, classes: int) -> int | None:
        """The most tokens of padding for which two of so many classes are merged; None: any."""
        if classes > _MOST_CLASSES:
            return None  # they are too many, whatever it saves
        if classes > self.limits.shapes:
            return self.limits.tokens_per_compilation
        return self.limits.tokens_per_shape

    def classes(self, counts: Counter[ExampleSize]) -> dict[ExampleSize, ExampleSize]:
        """The class of each size, as a size that is no smaller than any of its members.

        Classes are merged, those first that add the fewest tokens of padding, as long as separate
        classes save too little.
        """
        coarser = {size: size for size in counts}
        steps = self.limits.steps_per_octave
        while len(set(coarser.values())) > _MOST_MERGED and steps > 1:
            steps //= 2
            coarser = {size: _coarser(size, steps) for size in counts}
        sizes = np.array(sorted(set(coarser.values())), np.int64)
        number = {tuple(size): index for index, size in enumerate(sizes.tolist())}
        members = np.zeros(len(sizes), np.int64)
        for size, count in counts.items():
            members[number[coarser[size]]] += count
        merged = [tuple(size) for size in _merged(sizes, members, self).tolist()]
        return {size: merged[number[coarser[size]]] for size in counts}

    def filled(self, sizes: dict[int, ExampleSize], shapes: dict[ExampleSize, BatchShape]) -> Cut:
        """Batches of the class with most tokens first, filled up with what else fits."""
        waiting: dict[ExampleSize, deque[int]] = {}
        of_shape: dict[BatchShape, list[ExampleSize]] = {}
        for size in sorted(
            shapes,
            key=lambda size: (self.tokens(_size(shapes[size])), self.tokens(size), size),
            reverse=True,
        ):
            waiting[size] = deque()
            of_shape.setdefault(shapes[size], []).append(size)
        for index, size in sizes.items():
            waiting[size].append(index)
        cut: Cut = []
        for shape, own in of_shape.items():
            taken: list[int] = []
            for size in own:
                for index in waiting.pop(size):
                    taken.append(index)
                    if len(taken) == shape.documents:
                        cut.append((tuple(taken), shape))
                        taken = []
            if not taken:
                continue
            for size, indices in waiting.items():
                if _fits(size, shape):
                    while indices and len(taken) < shape.documents:
                        taken.append(indices.popleft())
            cut.append((tuple(taken), shape))
        return cut

    def in_order(self, sizes: dict[int, ExampleSize], shapes: dict[ExampleSize, BatchShape]) -> Cut:
        """Batches of consecutive documents for which one of the shapes is sufficient."""
        known = sorted(set(shapes.values()), key=lambda shape: self.tokens(_size(shape)))
        cut: Cut = []
        for index, size in sizes.items():
            taken = (*cut[-1][0], index) if cut else (index,)
            holding = [
                shape
                for shape in known
                if len(taken) <= shape.documents
                and all(_fits(sizes[other], shape) for other in taken)
            ]
            if cut and holding:
                cut[-1] = taken, holding[0]
            else:
                cut.append(((index,), shapes[size]))
        return cut


def _size(shape: BatchShape) -> ExampleSize:
    return shape.document_tokens, shape.prompts, shape.prompt_tokens, shape.target_tokens


def _fits(size: ExampleSize, shape: BatchShape) -> bool:
    return all(one <= most for one, most in zip(size, _size(shape), strict=True))


def _output_length(new_tokens: int, limits: BatchLimits, compiled: Collection[BatchShape]) -> int:
    """The length of the output arrays: a little more where that is compiled already."""
    own = _rounded(new_tokens, limits)
    lengths = [shape.target_tokens for shape in compiled if shape.target_tokens >= new_tokens]
    if own not in lengths and lengths and min(lengths) <= own + max(own // 4, 8):
        return min(lengths)
    return own


_MOST_CLASSES = 20
"""However many documents there are: all of their programs have to stay in memory."""

_MOST_MERGED = 256
"""Classes at first: merging compares each with each."""


def _merged(
    sizes: Int[np.ndarray, "N 4"], members: Int[np.ndarray, " N"], layout: _Layout
) -> Int[np.ndarray, "N 4"]:
    """For each size, that of its class."""
    sizes, members = sizes.copy(), members.copy()
    leader = np.arange(len(sizes))
    alive = np.ones(len(sizes), bool)

    def tokens(sizes: Int[np.ndarray, "*N 4"]) -> Float[np.ndarray, "*N"]:
        return layout.tokens_of(sizes).astype(np.float64)

    def added_with(one: int) -> Float[np.ndarray, " N"]:
        """The padding that merging each class with this one adds; never beyond the budget."""
        apart = tokens(sizes)
        merged = tokens(np.maximum(sizes, sizes[one]))
        within = merged <= np.maximum(np.maximum(apart, apart[one]), layout.limits.tokens)
        possible = alive & within & (np.arange(len(sizes)) != one)
        more = merged * (members + members[one]) - members * apart - (members * apart)[one]
        return np.where(possible, more, np.inf)

    added = np.stack([added_with(one) for one in range(len(sizes))])
    while True:
        first, second = np.unravel_index(np.argmin(added), added.shape)
        most = layout.most_padding(int(alive.sum()))
        if added[first, second] == np.inf or (most is not None and added[first, second] > most):
            return sizes[leader]
        sizes[first] = np.maximum(sizes[first], sizes[second])
        members[first] += members[second]
        alive[second] = False
        leader[leader == second] = first
        added[second] = added[:, second] = np.inf
        added[first] = added[:, first] = added_with(int(first))


def _rounded(size: int, limits: BatchLimits, multiple: int = 1) -> int:
    return _coarse(bucket(size, multiple=multiple), limits.steps_per_octave)


def _coarser(size: ExampleSize, steps: int) -> ExampleSize:
    document_tokens, prompts, prompt_tokens, output_tokens = (
        _coarse(length, steps) for length in size
    )
    return document_tokens, prompts, prompt_tokens, output_tokens


def _coarse(size: int, steps: int) -> int:
    """Rounded up to one of so many sizes to each power of two."""
    step = max((1 << (size - 1).bit_length()) // 2 // steps, 1)
    return math.ceil(size / step) * step

"""Step 2 of `generate`, the plan: a request becomes batches, keys for sampling, and automata."""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from pid_jax import arguments, prompt_in_decoder
from pid_jax.data import tokenizing
from pid_jax.data.batching import Batch, BatchShape, collate
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.packing import PackedBatch, PackedShape, collate_packed
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding import allowed_outputs, stop_sequences, token_automata
from pid_jax.decoding.allowed_outputs import UNCONSTRAINED, PrefixForest
from pid_jax.decoding.automata import Automata, Position
from pid_jax.decoding.compaction import Compaction
from pid_jax.decoding.decoding_options import DecodingOptions
from pid_jax.decoding.patterns import JsonSchema, Regex, compile_patterns
from pid_jax.decoding.token_automata import TokenAutomaton
from pid_jax.errors import UserError
from pid_jax.inference.batch_planning import BatchLimits, BatchPlanner, PlannedBatch
from pid_jax.inference.decoding_batch import DecodingBatch
from pid_jax.inference.request import AllowedList, Request
from pid_jax.models.protocol import Config, control_token_ids

ItemT = TypeVar("ItemT")


class PlannedSubtask(NamedTuple):
    """A prompt of a planned example, and where its output belongs."""

    document: int
    prompt: int
    sample: int
    """Which of several samples of the prompt."""


@dataclass(frozen=True)
class Arrangement:
    """The examples as they are decoded. Under "pie" each is one pair of a document and a prompt."""

    examples: list[TokenizedExample]
    subtasks: list[list[PlannedSubtask]]
    """Of each example, one for each of its prompts."""
    options: DecodingOptions
    max_new_tokens: list[list[int]]
    """Of each subtask, as are the next three."""
    roots: list[list[int]] | None
    """The node in the forest of allowed outputs."""
    patterns: list[list[int]] | None
    """The state in the automaton of patterns."""
    keys: list[list[tuple[int, int]]] | None
    """For sampling."""
    returned: int
    """Outputs of a subtask."""
    most_examples_per_document: int
    """1 under "pid", the most prompts of a document under "pie"."""


@dataclass(frozen=True)
class Plan:
    """The batches of a call, and how to make their arrays."""

    arrangement: Arrangement
    batches: list[PlannedBatch]
    config: Config
    compact: Compaction
    devices: int

    def batch(self, planned: PlannedBatch) -> DecodingBatch:
        """The arrays of one batch, on the host."""
        arranged, indices = self.arrangement, planned.examples
        batch, active = self.collate(planned)
        max_new_tokens = np.ones(active.shape, np.int32)
        max_new_tokens[active] = [n for i in indices for n in arranged.max_new_tokens[i]]

        def states(rows: list[list[int]] | None) -> Int[np.ndarray, "B P"] | None:
            if rows is None:
                return None
            states = np.full(active.shape, UNCONSTRAINED, np.int32)
            states[active] = [state for i in indices for state in rows[i]]
            return states

        keys = None
        if arranged.keys is not None:
            keys = np.zeros((*active.shape, 2), np.uint32)
            keys[active] = [key for i in indices for key in arranged.keys[i]]
        return DecodingBatch(
            batch,
            active,
            max_new_tokens,
            planned.shape,
            arranged.options,
            returned=arranged.returned,
            start=Position(states(arranged.roots), states(arranged.patterns)),
            keys=keys,
            compact=self.compact,
            batches_left=planned.same_shape_after // self.devices,
        )

    def collate(self, planned: PlannedBatch) -> tuple[Batch, Bool[np.ndarray, "B P"]]:
        """The tokens of one batch, and which of its prompts are not absent."""
        examples = [self.arrangement.examples[i] for i in planned.examples]
        shape = dataclasses.replace(
            planned.shape, prompts=planned.parts * planned.shape.prompts, target_tokens=1
        )
        batch = collate(
            examples,
            shape,
            pad_token_id=self.config.pad_token_id,
            decoder_start_token_id=self.config.decoder_start_token_id,
        )
        counts = np.zeros(batch.prompts.shape[0], np.int32)
        counts[: len(examples)] = [len(example.prompts) for example in examples]
        return batch, np.arange(batch.prompts.shape[1]) < counts[:, None]

    def packed(self, planned: PlannedBatch) -> PackedBatch:
        """The tokens and targets of one batch that is scored."""
        shape = packed_shape(planned.shape)
        return collate_packed(
            [self.arrangement.examples[i] for i in planned.examples],
            dataclasses.replace(shape, rows=planned.parts * shape.rows),
            pad_token_id=self.config.pad_token_id,
            decoder_start_token_id=self.config.decoder_start_token_id,
            row_tokens=planned.row_tokens,
        )


def packed_shape(shape: BatchShape) -> PackedShape:
    """The shape of a packed batch from the sizes that it was planned with."""
    return PackedShape(*dataclasses.astuple(shape))


def planned_shape(shape: PackedShape) -> BatchShape:
    """The inverse of `packed_shape`."""
    return BatchShape(*dataclasses.astuple(shape))


class Planner:
    """Plans the requests of one model."""

    def __init__(self, config: Config, tokenizer: Any | None) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._batches = BatchPlanner()
        self._stops: dict[tuple[Any, ...], stop_sequences.StopAutomaton] = {}
        """Of the latest stop sequences, which most calls repeat."""

    def arrange(self, request: Request) -> Arrangement:
        """The examples of a request as its method decodes them, and the options for programs."""
        options, examples = request.options, request.examples
        copies = options.num_return_sequences if options.do_sample else 1
        forest, roots = self._forest(request)
        stops = self._stop_automaton(tuple(options.stop)) if options.stop else None
        automaton, patterns = self._patterns(request)
        compiled = options.compiled(self.config, Automata(forest, automaton, stops))
        subtasks = [
            [PlannedSubtask(i, j, k) for j in range(len(example.prompts)) for k in range(copies)]
            for i, example in enumerate(examples)
        ]
        keys = None
        if options.do_sample:
            keys = [_sampling_keys(options.seed, example, copies) for example in examples]
        limits = _repeated(request.max_new_tokens, copies)
        roots = None if roots is None else _repeated(roots, copies)
        patterns = None if patterns is None else _repeated(patterns, copies)
        if copies > 1:
            examples = [
                dataclasses.replace(
                    example,
                    prompts=_repeated([example.prompts], copies)[0],
                    targets=_repeated([example.targets], copies)[0],
                )
                for example in examples
            ]
        most = 1
        if request.method == "pie":
            most = max((len(example.prompts) for example in examples), default=1)
            examples = prompt_in_decoder.prompt_in_encoder(examples, self._leading)
            subtasks, limits = _one_each(subtasks), _one_each(limits)
            roots = None if roots is None else _one_each(roots)
            patterns = None if patterns is None else _one_each(patterns)
            keys = None if keys is None else _one_each(keys)
        returned = 1 if options.do_sample else options.num_return_sequences
        return Arrangement(
            examples, subtasks, compiled, limits, roots, patterns, keys, returned, most
        )

    def plan(
        self,
        request: Request,
        arrangement: Arrangement,
        limits: BatchLimits,
        *,
        devices: int,
        compiled: Collection[BatchShape] = (),
        compact: Compaction = "auto",
        sort: bool = True,
        scored: bool = False,
        batches: BatchPlanner | None = None,
    ) -> Plan:
        """The batches of a request.

        compiled: shapes that need no compilation. sort: False maintains the order of documents.
        scored: for the targets of the examples instead of new tokens. batches: a planner other than
        the one that remembers the shapes of earlier calls.
        """
        longest = [max(row, default=1) for row in arrangement.max_new_tokens]
        new_tokens = longest[0] if len(set(longest)) == 1 else longest
        planned = (batches or self._batches).plan(
            arrangement.examples,
            limits,
            new_tokens=None if scored else new_tokens,
            num_beams=request.options.num_beams,
            devices=devices,
            compiled=compiled,
            sort=sort,
        )
        after: Counter[BatchShape] = Counter()
        counted = []
        for batch in reversed(planned):
            counted.append(dataclasses.replace(batch, same_shape_after=after[batch.shape]))
            after[batch.shape] += 1
        return Plan(arrangement, counted[::-1], self.config, compact, devices)

    def _forest(self, request: Request) -> tuple[PrefixForest | None, list[list[int]] | None]:
        """The prefix trees of all allowed outputs, and each prompt's node to start from."""
        rows = [
            [one if isinstance(one, AllowedList) else None for one in row]
            for row in request.allowed or ()
        ]
        lists = {id(one): one.outputs for row in rows for one in row if one is not None}
        if not lists:
            return None, None
        forest, roots = allowed_outputs.compile_forest(list(lists.values()))
        root_of = dict(zip(lists, roots, strict=True))
        return forest, [
            [UNCONSTRAINED if one is None else root_of[id(one)] for one in row] for row in rows
        ]

    def _patterns(self, request: Request) -> tuple[TokenAutomaton | None, list[list[int]] | None]:
        """The automaton of all patterns, and each prompt's state to start from.

        Raises `UserError` for a pattern without a match as short as the outputs of its prompt.
        """
        wanted = {
            (i, j): one
            for i, row in enumerate(request.allowed or ())
            for j, one in enumerate(row)
            if isinstance(one, Regex | JsonSchema)
        }
        if not wanted:
            return None, None
        automaton, starts = compile_patterns(list(wanted.values()), self.tokenizer, self.config)
        states = [[UNCONSTRAINED] * len(row) for row in request.allowed or ()]
        forced = self.config.forced_eos_token_id is not None
        for ((i, j), pattern), start in zip(wanted.items(), starts, strict=True):
            states[i][j] = start
            shortest = token_automata.shortest(automaton, start) + forced
            limit = request.max_new_tokens[i][j]
            if shortest > limit:
                raise UserError(
                    f"allowed[{i}][{j}]: the shortest match of {pattern} takes {shortest} tokens, "
                    f"but max_new_tokens={limit}: raise max_new_tokens"
                )
        return automaton, states

    def _stop_automaton(self, stop: tuple[Any, ...]) -> stop_sequences.StopAutomaton:
        known = self._stops.get(stop)  # once: another thread may replace it
        if known is not None:
            return known
        has_text = any(isinstance(item, str) for item in stop)
        tokens = self._token_bytes if has_text else None
        automaton = stop_sequences.compile_stops(stop, tokens, self.config.vocab_size)
        self._stops = {stop: automaton}
        return automaton

    @functools.cached_property
    def _token_bytes(self) -> stop_sequences.TokenBytes | None:
        if self.tokenizer is None:
            return None
        detokenizer = Detokenizer(self.tokenizer, control_token_ids(self.config))
        return stop_sequences.token_bytes(detokenizer, self.config.vocab_size)

    @functools.cached_property
    def _leading(self) -> list[int]:
        return [] if self.tokenizer is None else tokenizing.leading_tokens(self.tokenizer)


def _repeated(rows: Sequence[Sequence[ItemT]], copies: int) -> list[list[ItemT]]:
    """Each item as often as there are samples."""
    return [[item for item in row for _ in range(copies)] for row in rows]


def _one_each(rows: Sequence[Sequence[ItemT]]) -> list[list[ItemT]]:
    """A row for every item: under "pie" every prompt has its own example."""
    return [[item] for row in rows for item in row]


def _sampling_keys(seed: int, example: TokenizedExample, copies: int) -> list[tuple[int, int]]:
    """A key for each output of an example, from seed, document, prompt and copy alone."""
    document = hashlib.blake2b(np.asarray(example.document, np.int64).tobytes(), digest_size=16)
    keys = []
    for prompt in example.prompts:
        for copy in range(copies):
            digest = hashlib.blake2b(
                repr((int(seed), copy, document.hexdigest(), list(map(int, prompt)))).encode(),
                digest_size=8,
            ).digest()
            keys.append((int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")))
    return keys


def compaction(compact: Any) -> Compaction:
    """The value of the argument `compact`. Raises `UserError` for any other."""
    if isinstance(compact, str) and compact == "auto":
        return "auto"
    try:
        return arguments.flag("compact", compact)
    except UserError as error:
        raise UserError(f'{error}, or "auto"') from error

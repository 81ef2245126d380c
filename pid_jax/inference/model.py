"""`PidModel`: a model, its parameters and its tokenizer, in terms of text."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pid_jax import arguments
from pid_jax.backends.settings import compiling_for, placement_of
from pid_jax.checkpoints import huggingface
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding.compaction import Compaction
from pid_jax.decoding.options import GenerationOptions
from pid_jax.decoding.report import DecodingReport
from pid_jax.distributed import exchange, service
from pid_jax.errors import UserError
from pid_jax.inference.batch_decoder import BatchDecoder
from pid_jax.inference.batch_planning import BatchLimits, BatchPlanner, PlannedBatch
from pid_jax.inference.division import Division
from pid_jax.inference.executor import Executor
from pid_jax.inference.generation_defaults import GenerationDefaults
from pid_jax.inference.loading import load
from pid_jax.inference.plan import (
    Arrangement,
    Plan,
    Planner,
    compaction,
    packed_shape,
    planned_shape,
)
from pid_jax.inference.progress_bar import progress_bar
from pid_jax.inference.request import Allowed, Method, NewTokens, Request, RequestReader, Text
from pid_jax.inference.results import (
    Cancelled,
    Generation,
    OutputReader,
    Partial,
    Results,
    check_computed,
)
from pid_jax.models.protocol import Config, EncoderDecoder, Params
from pid_jax.programs import Programs


class PidModel:
    """An encoder-decoder that answers many prompts about one document.

    Documents and prompts are text, or token ids that are used as they are. Lists, tuples, arrays,
    pandas columns and other iterables are read in their order; what is neither text nor whole
    numbers is a `UserError` that names the item. Of text, documents get the special tokens of
    the tokenizer (T5 appends `</s>`), prompts get none, and targets to be scored get the end token.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        params: Params,
        tokenizer: Any | None = None,
        generation_config: Mapping[str, Any] = MappingProxyType({}),
    ):
        """generation_config: as a checkpoint's `generation_config.json` has it, by its keys."""
        self._model = model
        self._params = params
        self._tokenizer = tokenizer
        self._generation_config = dict(generation_config)
        self._defaults = GenerationDefaults(
            self._generation_config, model.config, has_tokenizer=tokenizer is not None
        )
        self._requests = RequestReader(model.config, tokenizer)
        self._planner = Planner(model.config, tokenizer)
        self._outputs = OutputReader(model.config, tokenizer)
        self._division = Division()
        self._programs = Programs()
        self._created: Executor | None = None
        self._lock = threading.Lock()

    @property
    def model(self) -> EncoderDecoder:
        """The architecture: a Flax module without parameters."""
        return self._model

    @property
    def params(self) -> Params:
        """The parameters. Others need another `PidModel`, see `with_params`."""
        return self._params

    def with_params(self, params: Params) -> "PidModel":
        """The same model with other parameters, and with the programs that this one has compiled.

        params: of the same shapes and dtypes, on the same devices.
        """
        other = copy.copy(self)
        other._params, other._created, other._lock = params, None, threading.Lock()
        return other

    @property
    def tokenizer(self) -> Any | None:
        """The Hugging Face tokenizer, or None."""
        return self._tokenizer

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """The content of the checkpoint's `generation_config.json`. `save_pretrained` writes it."""
        return MappingProxyType(self._generation_config)

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """The options of `generate` that the checkpoint sets, where a caller does not."""
        return MappingProxyType(dict(self._defaults.options))

    @property
    def _executor(self) -> Executor:
        """Created when it is first used: it may copy the parameters."""
        with self._lock:
            if self._created is None:
                with compiling_for(*placement_of(self.params)):
                    params = self.model.decoding_params(self.params)
                self._created = Executor(self.model, params, self._programs)
            return self._created

    @property
    def programs(self) -> Programs:
        """What was compiled for decoding; printed, a table with the seconds of each."""
        return self._programs

    @property
    def config(self) -> Config:
        """The architecture's configuration."""
        return self.model.config

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: DTypeLike = "float32",
        weights: str | None = None,
        mesh: Mapping[str, int] | Mesh | None = None,
    ) -> "PidModel":
        """Loads a Hugging Face directory or hub id, or a training run's working directory.

        Of a run, the best checkpoint is taken, or that of step N for `WORKDIR/checkpoints/N`.
        Raises `pid_jax.checkpoints.manifest.Damaged`, a `UserError`, if a file of a run is not
        what it was when it was written. dtype: of parameters and activations,
        "float32" or "bfloat16" (faster on GPU and TPU, slower on CPU), or "auto", which is that
        of the checkpoint. weights: "int8" for kernels and token embeddings in 8 bits
        (`pid_jax.backends.int8`), for decoding and scores only. None for weights in `dtype`.
        mesh: sizes of `pid_jax.sharding.make_mesh`, for example `{"data": 1, "tensor": 4}`, or a
        mesh. The parameters are split over its devices, and every device receives only its share,
        read from the files as it is needed. None for the first device. Not with 8 bits.
        Raises `UserError` naming the file, key or tensor that does not fit. Turns on JAX's
        persistent compilation cache, unless it is configured already (see
        `pid_jax.compilation_cache`).
        """
        return cls(*load(path, dtype, weights, mesh))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a directory that transformers loads with `from_pretrained`.

        Raises `UserError` for weights in 8 bits.
        """
        huggingface.save(directory, self.model, self.params, self.tokenizer, self.generation_config)

    def generate(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        max_new_tokens: NewTokens | None = None,
        min_new_tokens: int | None = None,
        method: Method = "pid",
        num_beams: int | None = None,
        *,
        allowed: Allowed | None = None,
        compact: Compaction = "auto",
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        after_batch: Callable[[float, float], None] | None = None,
        report: DecodingReport | None = None,
        processes: bool = False,
        cancelled: Callable[[], bool] | None = None,
        **options: Any,
    ) -> list[list[Generation]]:
        """Answers every prompt of every document; `result[i][j]` answers `prompts[i][j]`.

        prompts: one list per document, possibly empty. max_new_tokens: one number, or one per
        prompt in the same nesting. method: "pid" encodes each document once, "pie" once per prompt
        with the prompt in front of the document. options: the fields of `GenerationOptions`.
        Omitted or None options come from the checkpoint's `generation_config.json` (see
        `pid_jax.inference.generation_defaults`), or else from the defaults of `GenerationOptions`.
        allowed: per prompt, a list of allowed outputs, a `Regex`, a `JsonSchema`, or None for no
        restriction.

        compact: whether to remove finished prompts from the batch, which compiles a few smaller
        programs. "auto" does so when it is likely to save time.

        batch_tokens: maximum number of document, prompt and output tokens per batch, padding
        included. Default 4,096 on a CPU, 65,536 elsewhere. batch_size: maximum number of documents
        per batch. Under "pie" the limit is the number of pairs that these documents can have. The
        longest documents run first, so a lack of memory shows immediately. Batches are distributed
        over all local devices. Parameters that are sharded or not on the first device stay where
        they are.

        progress: show a progress bar on standard error. Default: only on a terminal. after_batch:
        called after each batch with its number of documents (fractional if a document spans
        batches) and its seconds, divided by the number of batches that run at a time. report:
        filled with counts of the work. processes: divide the batches among the processes of
        `jax.distributed`, which must all call this with the same arguments and have the parameters
        on their own devices. The first process returns all results, the others an empty list.
        `after_batch` then counts for all. cancelled: called after each batch. If it returns True
        in any process, all raise `Cancelled`. Results do not depend on the batch, order or padding.
        Raises `UserError` for invalid arguments.
        """
        compact = compaction(compact)
        options |= {"min_new_tokens": min_new_tokens, "num_beams": num_beams}
        request = self._request(documents, prompts, max_new_tokens, method, allowed, options)
        divided = processes and service.count() > 1
        plan = self._plan(request, batch_tokens, batch_size, compact=compact, divided=divided)
        signature, batches = plan.arrangement.options.signature(), plan.batches
        if divided:
            batches = self._division.own(signature, batches)
        results, ended = Results(request, self._outputs), False
        report = DecodingReport() if report is None else report
        executor = self._executor
        with (
            progress_bar(
                sum(1 for example in request.examples if example.prompts), progress
            ) as bar,
            executor.compiling_ahead(plan.arrangement.options, batches, plan.batch),
            closing(
                executor.run(lambda decoder, one: decoder.decode(plan.batch(one)), batches)
            ) as completed,
        ):
            for batch, outputs, seconds in completed:
                report.add(outputs.report)
                complete = results.add(plan, batch.examples, outputs)
                bar(complete)
                if after_batch is not None:
                    after_batch(complete * (service.count() if divided else 1), seconds)
                if ended := cancelled is not None and cancelled():
                    break
        if cancelled is not None and (exchange.any_of(ended) if divided else ended):
            raise Cancelled
        if divided and not results.gather(report):
            return []
        return results.nested()

    def stream(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        max_new_tokens: NewTokens | None = None,
        min_new_tokens: int | None = None,
        method: Method = "pid",
        *,
        every: int = 1,
        allowed: Allowed | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[Partial]:
        """Yields outputs while they grow: each that has grown, every `every` tokens.

        Documents are decoded in the given order. The last item of each output has `done=True` and
        equals the result of `generate`. Arguments that `generate` also has mean the same. A partial
        output omits an incomplete last character and a trailing partial stop-sequence match. Beam
        search cannot stream: `num_beams` from the caller raises `UserError`, and from the
        checkpoint it is ignored with a warning.
        """
        every = arguments.integer("every", every, at_least=1)
        options |= {"min_new_tokens": min_new_tokens}
        request = self._request(
            documents, prompts, max_new_tokens, method, allowed, options, streamed=True
        )
        if request.options.num_beams > 1 or request.options.num_return_sequences > 1:
            raise UserError("stream yields one growing output: not num_beams, several sequences")
        plan = self._plan(request, batch_tokens, batch_size, compact=False, sort=False, devices=1)
        return self._stream(request, plan, every)

    def _stream(self, request: Request, plan: Plan, every: int) -> Iterator[Partial]:
        for planned in plan.batches:
            batch = plan.batch(planned)
            shown = np.zeros(batch.active.shape, np.int32)
            complete = np.zeros(batch.active.shape, bool)
            for outputs in self._executor[0].stream(batch, every):
                for row, index in enumerate(planned.examples):
                    for column, subtask in enumerate(plan.arrangement.subtasks[index]):
                        length = outputs.lengths[row, column, 0]
                        finished = bool(outputs.finished[row, column])
                        if complete[row, column] or (length == shown[row, column] and not finished):
                            continue
                        document, prompt, _ = subtask
                        check_computed(outputs.scores[row, column], document, prompt)
                        shown[row, column], complete[row, column] = length, finished
                        [generation] = self._outputs.generations(
                            outputs, row, column, request, document, prompt
                        )
                        yield Partial(document, prompt, generation, finished)

    def warm_up(
        self,
        document_tokens: int,
        prompts: int,
        prompt_tokens: int,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        method: Method = "pid",
        *,
        documents: int = 1,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        compact: Compaction = True,
        **options: Any,
    ) -> Programs:
        """Compiles the programs of `generate` for batches of this shape, before the first request.

        Sizes are rounded up and batches are limited as in `generate`. `compact=True` also compiles
        the smaller programs for compaction. Programs with `allowed` are not covered, because their
        shapes depend on the lists. Returns the table of compiled programs.
        """
        compact = compaction(compact)
        chosen = self._options(options | {"min_new_tokens": min_new_tokens}, max_new_tokens)
        document_tokens = arguments.integer("document_tokens", document_tokens, at_least=0)
        prompts = arguments.integer("prompts", prompts, at_least=1)
        prompt_tokens = arguments.integer("prompt_tokens", prompt_tokens, at_least=0)
        documents = arguments.integer("documents", documents, at_least=1)
        padding = [self.config.pad_token_id]
        example = TokenizedExample(
            "", padding * document_tokens, [padding * prompt_tokens] * prompts, [()] * prompts
        )
        request = self._requests.request([example] * documents, chosen, method)
        arrangement = self._planner.arrange(request)
        # Its own memory of shapes: these batches do not predict those of later calls.
        plan = self._planner.plan(
            request,
            arrangement,
            _limits(arrangement, batch_tokens, batch_size),
            devices=len(self._executor),
            compact=compact,
            batches=BatchPlanner(),
        )
        self._executor.warm_up(plan.batches, plan.batch)
        return self.programs

    def score(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        targets: Sequence[Sequence[Text]],
        method: Method = "pid",
        batch_size: int | None = None,
        batch_tokens: int | None = None,
    ) -> list[list[float]]:
        """log p(target | document, prompt) in nats, nested as the prompts are.

        The arguments are those of `generate`. Targets of token ids are scored as given.
        """
        if targets is None:
            raise UserError("targets must be a list with one list per document, not None")
        options = GenerationOptions(max_new_tokens=1)
        request = self._requests.read(documents, prompts, options, method, targets=targets)
        plan = self._plan(request, batch_tokens, batch_size, scored=True)
        results = [[0.0] * len(example.prompts) for example in request.examples]

        def score(decoder: BatchDecoder, batch: PlannedBatch) -> np.ndarray:
            subtasks = max(len(plan.arrangement.subtasks[index]) for index in batch.examples)
            return decoder.score(plan.packed(batch), packed_shape(batch.shape), subtasks)

        with closing(self._executor.run(score, plan.batches)) as completed:
            for batch, scores, _ in completed:
                for row, index in enumerate(batch.examples):
                    for column, subtask in enumerate(plan.arrangement.subtasks[index]):
                        document, prompt, _ = subtask
                        check_computed(scores[row, column], document, prompt)
                        results[document][prompt] = float(scores[row, column])
        return results

    def _request(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        max_new_tokens: NewTokens | None,
        method: Method,
        allowed: Allowed | None,
        options: dict[str, Any],
        *,
        streamed: bool = False,
    ) -> Request:
        limits = RequestReader.limits(max_new_tokens)
        chosen = self._options(options, limits, streamed=streamed, constrained=allowed is not None)
        return self._requests.read(
            documents, prompts, chosen, method, max_new_tokens=limits, allowed=allowed
        )

    def _options(
        self,
        given: dict[str, Any],
        max_new_tokens: NewTokens | None,
        *,
        streamed: bool = False,
        constrained: bool = False,
    ) -> GenerationOptions:
        """The options of a call, with the checkpoint's where the caller gives none."""
        most: Any = max_new_tokens
        if isinstance(max_new_tokens, list):
            most = max((n for row in max_new_tokens for n in row), default=None)
        return self._defaults.options_with(
            given | {"max_new_tokens": most}, streamed=streamed, constrained=constrained
        )

    def _plan(
        self,
        request: Request,
        batch_tokens: int | None,
        batch_size: int | None,
        *,
        compact: Compaction = "auto",
        sort: bool = True,
        devices: int | None = None,
        scored: bool = False,
        divided: bool = False,
    ) -> Plan:
        arrangement = self._planner.arrange(request)
        decoder = self._executor[0]
        if divided:
            compiled = self._division.compiled(arrangement.options.signature())
        elif scored:
            compiled = [planned_shape(shape) for shape in decoder.scored_shapes()]
        else:
            compiled = decoder.shapes(arrangement.options)
        return self._planner.plan(
            request,
            arrangement,
            _limits(arrangement, batch_tokens, batch_size),
            devices=devices or len(self._executor),
            compiled=compiled,
            compact=compact,
            sort=sort,
            scored=scored,
        )


def _limits(
    arrangement: Arrangement, batch_tokens: int | None, batch_size: int | None
) -> BatchLimits:
    if batch_tokens is not None:
        batch_tokens = arguments.integer("batch_tokens", batch_tokens, at_least=1)
    if batch_size is not None:
        batch_size = arguments.integer("batch_size", batch_size, at_least=1)
    most = batch_size and batch_size * arrangement.most_examples_per_document
    return BatchLimits.by_default(batch_tokens, most)

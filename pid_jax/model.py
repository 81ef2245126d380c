"""`PidModel`: a model, its parameters and its tokenizer, in terms of text."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pid_jax import arguments
from pid_jax.checkpoints import contents, huggingface
from pid_jax.compilation_cache import keep_compiled_programs
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding.compaction import Compaction
from pid_jax.decoding.engine import Job
from pid_jax.decoding.engines import Engines
from pid_jax.decoding.options import Controls, GenerationOptions
from pid_jax.decoding.planning import Limits, PlannedBatch, Planner
from pid_jax.decoding.report import DecodingReport
from pid_jax.errors import UserError
from pid_jax.generation_defaults import GenerationDefaults
from pid_jax.inputs import Inputs, Method, Text, Work
from pid_jax.models.protocol import Config, EncoderDecoder, Params
from pid_jax.outputs import Generation, Partial, Reader, check_computed, with_alternatives
from pid_jax.programs import Programs


class PidModel:
    """An encoder-decoder that answers many prompts about one document.

    Documents and prompts are text, or token ids that are used as they are. Lists, tuples, arrays,
    pandas columns and other iterables are read in their order; what is neither text nor whole
    numbers is a `UserError` that names its place. Of text, documents get the special tokens of
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
        self._inputs = Inputs(model.config, tokenizer)
        self._reader = Reader(model.config, tokenizer)
        self._planner = Planner()
        self._made: Engines | None = None
        self._lock = threading.Lock()

    @property
    def model(self) -> EncoderDecoder:
        """The architecture: a Flax module without parameters."""
        return self._model

    @property
    def params(self) -> Params:
        """The parameters. Others need another `PidModel`: programs are compiled beside these."""
        return self._params

    @property
    def tokenizer(self) -> Any | None:
        """The Hugging Face tokenizer, or None."""
        return self._tokenizer

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """What the checkpoint says of how outputs are chosen, as it says it: `save_pretrained`
        keeps all of it."""
        return MappingProxyType(self._generation_config)

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """The options of `generate` that the checkpoint sets, where a caller does not."""
        return MappingProxyType(dict(self._defaults.options))

    @property
    def _engines(self) -> Engines:
        """Made when it is needed: it may hold parameters a second time."""
        with self._lock:
            if self._made is None:
                params = self.params
                if jax.default_backend() == "cpu":
                    params = self.model.decoding_params(params)
                self._made = Engines(self.model, params)
            return self._made

    @property
    def programs(self) -> Programs:
        """What was compiled for decoding; printed, a table with the seconds of each."""
        return self._engines.programs

    @property
    def config(self) -> Config:
        """The architecture's configuration."""
        return self.model.config

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: DTypeLike = "float32") -> "PidModel":
        """Loads a Hugging Face directory or hub id, or a training run's working directory.

        Of a run, the best checkpoint is taken. dtype: of parameters and activations,
        "float32" or "bfloat16" (faster on GPU and TPU, slower on CPU), or "auto", which is that
        of the checkpoint. Raises `UserError` naming the file, key or tensor that does not fit.
        Turns on JAX's persistent compilation cache, unless it is configured already (see
        `pid_jax.compilation_cache`).
        """
        dtype = _dtype(dtype)
        keep_compiled_programs()
        with contents.reading(path):
            if contents.is_run(path):
                from pid_jax.checkpoints import orbax

                return cls(*orbax.load_model(Path(path), dtype=dtype))
            return cls(*huggingface.load(path, dtype))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a directory that transformers loads with `from_pretrained`."""
        huggingface.save(directory, self.model, self.params, self.tokenizer, self.generation_config)

    def generate(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        method: Method = "pid",
        num_beams: int | None = None,
        *,
        allowed: Sequence[Sequence[Sequence[Text] | None]] | None = None,
        compact: Compaction = "auto",
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        after_batch: Callable[[float, float], None] | None = None,
        report: DecodingReport | None = None,
        **options: Any,
    ) -> list[list[Generation]]:
        """Answers every prompt of every document; `result[i][j]` answers `prompts[i][j]`.

        prompts: one list per document, of any length, none too. method: "pid" encodes each
        document once; "pie" encodes it once per prompt, the prompt before it.
        options: those of `GenerationOptions`: beam search, sampling, penalties, stop sequences,
        drafts, barred words. One that is not given, or None, is the checkpoint's, of its
        `generation_config.json` (see `pid_jax.generation_defaults`), or else the default of
        `GenerationOptions`: greedy, max_new_tokens=32. allowed: nested as the prompts are, for
        each prompt the list of its allowed outputs, or None where anything is.
        compact: whether prompts that have ended are dropped from the batch, which compiles a
        few smaller programs; "auto" does where that is likely to repay.
        batch_tokens: how many tokens of documents, prompts and outputs, padding included, are
        decoded together, by default 4,096 on a CPU and 65,536 elsewhere; batch_size: how many
        documents at most (under "pie" as many pairs as so many documents can have). Those of
        similar length go together, the longest first: if memory does not suffice, that shows at
        once. Every device of this process takes a batch at a time, and fewer documents than
        fill a batch on each are shared out; parameters that lie elsewhere than on the first
        device, split over several say, are used where they lie.
        progress: a progress bar on standard error; by default if that is a terminal.
        after_batch: called after each batch with its number of documents (a document whose
        prompts are in several batches counts in parts) and its seconds, divided by the number of
        devices that decode: over all batches they add up to the time that passed.
        report: filled with what was done. Results depend on neither batch mates nor order nor
        padding. Raises `UserError` for arguments that do not fit.
        """
        compact = _compaction(compact)
        lengths = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        chosen = self._defaults.options_with(
            {**lengths, "num_beams": num_beams, **options}, held_to_lists=allowed is not None
        )
        examples = self._inputs.examples(documents, prompts)
        work, controls = self._inputs.work(examples, allowed, method, chosen)
        chosen = work.options
        batches = self._batches(work, batch_tokens, batch_size, chosen, controls)
        report = DecodingReport() if report is None else report
        found: dict[tuple[int, int], dict[int, list[Generation]]] = {}
        copies = chosen.num_return_sequences if chosen.do_sample else 1
        parts = [1 / max(len(example.prompts) * copies, 1) for example in examples]
        asked = sum(1 for example in examples if example.prompts)

        def job_of(batch: PlannedBatch, left: int) -> Job:
            return self._inputs.job(
                work, batch, controls, chosen, compact=compact, batches_left=left
            )

        with (
            _progress_bar(asked, progress) as bar,
            closing(self._engines.decode(batches, job_of)) as decoded,
        ):
            for batch, outputs, part, seconds in decoded:
                report.add(part)
                ready = 0.0
                for row, index in enumerate(batch.examples):
                    for column, (document, prompt, copy) in enumerate(work.places[index]):
                        of_prompt = found.setdefault((document, prompt), {})
                        check_computed(outputs.scores[row, column], document, prompt)
                        spelled = work.spelled(index, column)
                        of_prompt[copy] = self._reader.generations(
                            outputs, row, column, chosen, spelled
                        )
                        ready += parts[document]
                bar(ready)
                if after_batch is not None:
                    after_batch(ready, seconds)
        return [
            [with_alternatives(found[i, j]) for j in range(len(example.prompts))]
            for i, example in enumerate(examples)
        ]

    def stream(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        method: Method = "pid",
        *,
        every: int = 1,
        allowed: Sequence[Sequence[Sequence[Text] | None]] | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[Partial]:
        """Yields outputs while they grow: each that has grown, every `every` tokens.

        For interactive use: documents are decoded in the given order. Each output's last item,
        and only that, is `done` and equal to the result of `generate`, whose arguments these
        are. An output may lack its last character while that is half generated, and what may
        become a stop sequence. Beam search has no outputs before its end: beams that are asked
        for are a `UserError`, those of the checkpoint's `generation_config.json` are left out,
        with a warning in the log.
        """
        every = arguments.integer("every", every, at_least=1)
        lengths = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        chosen = self._defaults.options_with(
            lengths | options, streamed=True, held_to_lists=allowed is not None
        )
        if chosen.num_beams > 1 or chosen.num_return_sequences > 1:
            raise UserError("stream yields one growing output: not num_beams, several sequences")
        work, controls = self._inputs.work(
            self._inputs.examples(documents, prompts), allowed, method, chosen
        )
        chosen = work.options
        batches = self._batches(
            work, batch_tokens, batch_size, chosen, controls, sort=False, devices=1
        )
        return self._stream(work, batches, controls, chosen, every)

    def _stream(
        self,
        work: Work,
        batches: list[PlannedBatch],
        controls: Controls,
        options: GenerationOptions,
        every: int,
    ) -> Iterator[Partial]:
        for batch in batches:
            job = self._inputs.job(
                work, batch, controls, options, steps_at_once=every, compact=False
            )
            shown = np.zeros(job.active.shape, np.int32)
            finished = np.zeros(job.active.shape, bool)
            for outputs in self._engines[0].decode(job):
                if outputs is None:
                    continue
                for row, index in enumerate(batch.examples):
                    for column, (document, prompt, _) in enumerate(work.places[index]):
                        length = outputs.lengths[row, column, 0]
                        done = bool(outputs.done[row, column])
                        if finished[row, column] or (length == shown[row, column] and not done):
                            continue
                        check_computed(outputs.scores[row, column], document, prompt)
                        shown[row, column], finished[row, column] = length, done
                        spelled = work.spelled(index, column)
                        [generation] = self._reader.generations(
                            outputs, row, column, options, spelled
                        )
                        yield Partial(document, prompt, generation, done)

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
        """Compiles what `generate` will need for batches of this shape, before the first request.

        Sizes are rounded up as those of a batch are, and batches hold no more than those of
        `generate`, whose further arguments these are. Programs with `allowed` are not covered:
        their shapes depend on the lists. Returns the table of compiled programs.
        """
        compact = _compaction(compact)
        lengths = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
        chosen = self._defaults.options_with(lengths | options)
        document_tokens = arguments.integer("document_tokens", document_tokens, at_least=0)
        prompts = arguments.integer("prompts", prompts, at_least=1)
        prompt_tokens = arguments.integer("prompt_tokens", prompt_tokens, at_least=0)
        documents = arguments.integer("documents", documents, at_least=1)
        fill = [self.config.pad_token_id]
        example = TokenizedExample(
            "", fill * document_tokens, [fill * prompt_tokens] * prompts, [()] * prompts
        )
        work, controls = self._inputs.work([example] * documents, None, method, chosen)
        chosen = work.options

        def job_of(batch: PlannedBatch, left: int) -> Job:
            del left  # whether smaller programs will repay is what `compact` says here
            return self._inputs.job(work, batch, controls, chosen, compact=compact)

        limits = self._limits(work, batch_tokens, batch_size)
        batches = Planner().plan(
            work.examples,
            limits,
            new_tokens=chosen.max_new_tokens,
            num_beams=chosen.num_beams,
            devices=len(self._engines),
        )
        self._engines.warm_up(batches, job_of)
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

        The arguments are those of `generate`; targets of token ids are scored as given.
        """
        if targets is None:
            raise UserError("targets must be a list with one list per document, not None")
        examples = self._inputs.examples(documents, prompts, targets)
        one = GenerationOptions(max_new_tokens=1)
        work, controls = self._inputs.work(examples, None, method, one)
        results = [[0.0] * len(example.prompts) for example in examples]
        engine = self._engines[0]
        for planned in self._batches(
            work, batch_tokens, batch_size, one, controls, devices=1, scored=True
        ):
            batch, _ = self._inputs.collate([work.examples[i] for i in planned.examples], planned)
            scores = engine.score(batch, planned.shape)
            for row, index in enumerate(planned.examples):
                for column, (document, prompt, _) in enumerate(work.places[index]):
                    check_computed(scores[row, column], document, prompt)
                    results[document][prompt] = float(scores[row, column])
        return results

    def _batches(
        self,
        work: Work,
        batch_tokens: int | None,
        batch_size: int | None,
        options: GenerationOptions,
        controls: Controls,
        *,
        sort: bool = True,
        devices: int | None = None,
        scored: bool = False,
    ) -> list[PlannedBatch]:
        """What is decoded together; examples without prompts are in no batch."""
        engine = self._engines[0]
        return self._planner.plan(
            work.examples,
            self._limits(work, batch_tokens, batch_size),
            new_tokens=None if scored else options.max_new_tokens,
            num_beams=options.num_beams,
            devices=devices or len(self._engines),
            compiled=engine.scored_shapes()
            if scored
            else engine.shapes(options.strategy(), controls),
            sort=sort,
        )

    @staticmethod
    def _limits(work: Work, batch_tokens: int | None, batch_size: int | None) -> Limits:
        if batch_tokens is not None:
            batch_tokens = arguments.integer("batch_tokens", batch_tokens, at_least=1)
        if batch_size is not None:
            batch_size = arguments.integer("batch_size", batch_size, at_least=1)
        most = batch_size and batch_size * work.most_examples_each
        return Limits.by_default(batch_tokens, most)


@contextmanager
def _progress_bar(documents: int, wanted: bool | None) -> Iterator[Callable[[float], None]]:
    if wanted is None:
        wanted = sys.stderr.isatty()
    if not wanted:
        yield lambda documents: None
        return
    from tqdm import tqdm

    with tqdm(total=documents, unit=" documents", bar_format=_BAR) as bar:
        yield lambda documents: bar.update(documents) and None


_BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} documents [{elapsed}<{remaining}, {rate_fmt}]"


def _compaction(compact: Any) -> Compaction:
    if isinstance(compact, str) and compact == "auto":
        return "auto"
    try:
        return arguments.flag("compact", compact)
    except UserError as error:
        raise UserError(f'{error}, or "auto"') from error


def _dtype(dtype: DTypeLike) -> Any:
    """None for "auto"."""
    if dtype == "auto":
        return None
    name = jnp.dtype(dtype).name if not isinstance(dtype, str) else dtype
    if name not in ("float32", "bfloat16"):
        supported = "'float32', 'bfloat16', 'auto'"
        raise UserError(f"dtype={name!r} is not supported; supported: {supported}")
    return jnp.dtype(name)

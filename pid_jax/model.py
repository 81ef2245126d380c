"""`PidModel`: a model, its parameters and its tokenizer, in terms of text."""

import dataclasses
import functools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pid_jax import prompt_in_decoder
from pid_jax.checkpoints import contents, huggingface
from pid_jax.compilation_cache import keep_compiled_programs
from pid_jax.data.batching import batches_within, bucket, spread
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding.compaction import Compaction
from pid_jax.decoding.engine import Engine, Job, Outputs
from pid_jax.decoding.engines import Engines, together
from pid_jax.decoding.options import Controls, GenerationOptions
from pid_jax.decoding.report import DecodingReport
from pid_jax.errors import UserError
from pid_jax.inputs import Inputs, Method, Text, Work
from pid_jax.models.protocol import Config, EncoderDecoder, Params
from pid_jax.outputs import Generation, Partial, Reader, check_computed, with_alternatives
from pid_jax.programs import Programs

_score = jax.jit(prompt_in_decoder.target_log_probabilities, static_argnums=0)


class PidModel:
    """An encoder-decoder that answers many prompts about one document.

    Documents and prompts are text, or lists of token ids that are used as they are. Of text,
    documents get the special tokens of the tokenizer (T5 appends `</s>`), prompts get none,
    and targets to be scored get the end token.
    """

    def __init__(self, model: EncoderDecoder, params: Params, tokenizer: Any | None = None):
        self._model = model
        self._params = params
        self._tokenizer = tokenizer

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

    @functools.cached_property
    def _inputs(self) -> Inputs:
        return Inputs(self.config, self.tokenizer)

    @functools.cached_property
    def _reader(self) -> Reader:
        return Reader(self.config, self.tokenizer)

    @functools.cached_property
    def _engines(self) -> Engines:
        params = self.params
        if jax.default_backend() == "cpu":
            params = self.model.decoding_params(params)
        return Engines(self.model, params)

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
        huggingface.save(directory, self.model, self.params, self.tokenizer)

    def generate(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        max_new_tokens: int = 32,
        min_new_tokens: int = 0,
        method: Method = "pid",
        num_beams: int = 1,
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
        drafts; greedy without any. allowed: nested as the prompts are, for each prompt the list
        of its allowed outputs, or None where anything is.
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
        chosen = _options(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            num_beams=num_beams,
            **options,
        )
        examples = self._inputs.examples(documents, prompts)
        work, controls = self._inputs.work(examples, allowed, method, chosen)
        batches = self._batches(work, batch_tokens, batch_size, chosen)
        report = DecodingReport() if report is None else report
        found: dict[tuple[int, int], dict[int, list[Generation]]] = {}
        copies = chosen.num_return_sequences if chosen.do_sample else 1
        parts = [1 / max(len(example.prompts) * copies, 1) for example in examples]
        asked = sum(1 for example in examples if example.prompts)
        with _progress_bar(asked, progress) as bar:
            for indices, outputs, seconds in self._decode_all(
                work, batches, controls, chosen, compact, report
            ):
                ready = 0.0
                for row, index in enumerate(indices):
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
        max_new_tokens: int = 32,
        min_new_tokens: int = 0,
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
        become a stop sequence. Beam search has no outputs before its end: `UserError`.
        """
        if every < 1:
            raise UserError(f"every must be at least 1, not {every}")
        chosen = _options(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, **options)
        if chosen.num_beams > 1 or chosen.num_return_sequences > 1:
            raise UserError("stream yields one growing output: not num_beams, several sequences")
        work, controls = self._inputs.work(
            self._inputs.examples(documents, prompts), allowed, method, chosen
        )
        batches = self._batches(work, batch_tokens, batch_size, chosen, sort=False)
        return self._stream(work, batches, controls, chosen, every)

    def _stream(
        self,
        work: Work,
        batches: list[list[int]],
        controls: Controls,
        options: GenerationOptions,
        every: int,
    ) -> Iterator[Partial]:
        for indices in batches:
            job = self._inputs.job(work, indices, controls, options)
            job.steps_at_once = every
            job.compact = False
            shown = np.zeros(job.active.shape, np.int32)
            finished = np.zeros(job.active.shape, bool)
            for outputs in self._engines[0].decode(job):
                if outputs is None:
                    continue
                for row, index in enumerate(indices):
                    for column, (document, prompt, _) in enumerate(work.places[index]):
                        length = outputs.lengths[row, column, 0]
                        done = bool(outputs.done[row, column])
                        if finished[row, column] or (length == shown[row, column] and not done):
                            continue
                        check_computed(outputs.scores[row, column], document, prompt)
                        shown[row, column], finished[row, column] = length, done
                        spelled = work.spelled(index, column) if done else {}
                        [generation] = self._reader.generations(
                            outputs, row, column, options, spelled
                        )
                        yield Partial(document, prompt, generation, done)

    def warm_up(
        self,
        document_tokens: int,
        prompts: int,
        prompt_tokens: int,
        max_new_tokens: int = 32,
        min_new_tokens: int = 0,
        method: Method = "pid",
        *,
        documents: int = 1,
        compact: Compaction = True,
        **options: Any,
    ) -> Programs:
        """Compiles what `generate` will need for batches of this shape, before the first request.

        Sizes are rounded up as those of a batch are. Programs with `allowed` are not covered:
        their shapes depend on the lists. Returns the table of compiled programs.
        """
        chosen = _options(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, **options)
        fill = [self.config.pad_token_id]
        example = TokenizedExample(
            "", fill * document_tokens, [fill * prompt_tokens] * prompts, [()] * prompts
        )
        work, controls = self._inputs.work([example] * documents, None, method, chosen)
        batches = spread([list(range(len(work.examples)))], len(self._engines))
        jobs = {}
        for batch in batches:  # shared out over the devices as `generate` would
            job = self._inputs.job(work, batch, controls, chosen)
            job.compact = compact
            jobs[job.active.shape] = job

        def warmed_up(engine: Engine) -> Iterator[None]:
            for job in jobs.values():
                engine.warm_up(job)
                yield

        list(together([warmed_up(engine) for engine in self._engines]))
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
        examples = self._inputs.examples(documents, prompts, targets)
        work, _ = self._inputs.work(examples, None, method, _options(max_new_tokens=1))
        longest = max((len(t) for example in examples for t in example.targets), default=0)
        lengths = _options(max_new_tokens=max(longest, 1))
        results = [[0.0] * len(example.prompts) for example in examples]
        for indices in self._batches(work, batch_tokens, batch_size, lengths):
            batch, _ = self._inputs.collate([work.examples[i] for i in indices])
            scores = jax.device_get(_score(self.model, self.params, batch))
            for row, index in enumerate(indices):
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
        sort: bool = True,
    ) -> list[list[int]]:
        """Indices of the examples that are decoded together; those without prompts are in none."""
        for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if batch_tokens is None:
            batch_tokens = 4096 if jax.default_backend() == "cpu" else 65536
        asked = [i for i, example in enumerate(work.examples) if example.prompts]
        batches = batches_within(
            [work.examples[i] for i in asked],
            batch_tokens,
            new_tokens=bucket(options.max_new_tokens),
            num_beams=options.num_beams,
            most_documents=batch_size and batch_size * work.most_examples_each,
            sort=sort,
        )
        return [[asked[i] for i in batch] for batch in batches]

    def _decode_all(
        self,
        work: Work,
        batches: list[list[int]],
        controls: Controls,
        options: GenerationOptions,
        compact: Compaction,
        report: DecodingReport,
    ) -> Iterator[tuple[list[int], Outputs, float]]:
        """Decodes batches on all devices: each takes the next one when it is free."""
        waiting = deque(spread(batches, len(self._engines)))
        used = min(len(self._engines), len(waiting))
        first = [waiting.popleft() for _ in range(used)]

        def on(
            engine: Engine, first: list[int]
        ) -> Iterator[tuple[list[int], Outputs, DecodingReport, float] | None]:
            """An accelerator has its next batch at hand while it decodes one.

            None: nothing yet, but a moment at which to stop.
            """
            at_once = 1 if jax.default_backend() == "cpu" else 2
            own = deque([first])
            running: deque[tuple[list[int], Job, Iterator[Outputs | None]]] = deque()
            since = time.perf_counter()
            while own or running or waiting:
                # The last batches are left for whichever device is free first.
                while not running or (len(running) < at_once and len(waiting) >= used):
                    taken = own.popleft() if own else _next_of(waiting)
                    if taken is None:
                        break
                    indices = taken
                    job = self._inputs.job(work, indices, controls, options)
                    job.compact, job.batches_left = compact, len(waiting) // used
                    decoding = engine.decode(job)
                    next(decoding)  # sets the device to work
                    running.append((indices, job, decoding))
                if not running:
                    return
                indices, job, decoding = running.popleft()
                outputs = next(decoding)
                if outputs is None:
                    running.append((indices, job, decoding))
                    yield None
                    continue
                now = time.perf_counter()
                yield indices, outputs, job.report, (now - since) / used
                since = now

        with closing(together([on(self._engines[i], first[i]) for i in range(used)])) as decoded:
            for item in decoded:
                if item is None:
                    continue
                indices, outputs, part, seconds = item
                report.add(part)
                yield indices, outputs, seconds


def _next_of(waiting: "deque[list[int]]") -> list[int] | None:
    try:
        return waiting.popleft()  # at once: other threads take from it too
    except IndexError:
        return None


def _options(**given: Any) -> GenerationOptions:
    known = {field.name for field in dataclasses.fields(GenerationOptions)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise UserError(f"unknown option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return GenerationOptions(**given)


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


def _dtype(dtype: DTypeLike) -> Any:
    """None for "auto"."""
    if dtype == "auto":
        return None
    name = jnp.dtype(dtype).name if not isinstance(dtype, str) else dtype
    if name not in ("float32", "bfloat16"):
        supported = "'float32', 'bfloat16', 'auto'"
        raise UserError(f"dtype={name!r} is not supported; supported: {supported}")
    return jnp.dtype(name)

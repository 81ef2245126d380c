"""The last step of `generate`, the results: outputs of batches become `Generation`s."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.decoding import stop_sequences
from pid_jax.decoding.options import GenerationOptions
from pid_jax.decoding.report import DecodingReport
from pid_jax.distributed import exchange
from pid_jax.errors import UserError
from pid_jax.inference.decoding_batch import Outputs
from pid_jax.inference.plan import Plan
from pid_jax.inference.request import AllowedList, Request
from pid_jax.models.protocol import Config, control_token_ids, end_token_ids

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an output, and the natural logarithm of the probability the model gives it.

    The probabilities are the model's own, before penalties, lists and temperature.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens of this position and their log-probabilities, the likeliest first. The
    option `logprobs` sets their number."""


NOTHING_FOUND = -1e9
"""The score of an empty output where beam search has none, as in transformers."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated for one prompt."""

    text: str | None
    """The tokens as text, spaces included; control tokens such as padding are left out, tokens
    that were added to the tokenizer are not (see `pid_jax.data.detokenizing`). It ends before a
    stop text. None where the model has no tokenizer."""
    tokens: list[int]
    """Without the prompt, the end token, and a stop sequence of tokens."""
    score: float
    """The sum of the log-probabilities that the model gives the tokens and, if they came, the end
    token or the stop sequence."""
    alternatives: tuple["Generation", ...] = ()
    """The other outputs, the best first, where num_return_sequences asks for several."""
    finish_reason: FinishReason | None = None
    """Why it ended, in the words of OpenAI's API and vLLM: "stop" at the end token or a stop
    sequence, "length" at max_new_tokens. An end token that the model's configuration forces at
    max_new_tokens (BART's `forced_eos_token_id`) is "length", too. None while it grows."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each token that the score counts, the end token or the stop sequence included;
    None without the option `logprobs`."""


@dataclass(frozen=True, slots=True)
class Partial:
    """An output as far as it has come."""

    document: int
    prompt: int
    generation: Generation
    done: bool


class Results:
    """Collects the outputs of a call, nested as its prompts are."""

    def __init__(self, request: Request, reader: "OutputReader") -> None:
        self._request = request
        self._reader = reader
        self._generations: dict[tuple[int, int], dict[int, list[Generation]]] = {}

    def add(self, plan: Plan, examples: Sequence[int], outputs: Outputs) -> float:
        """Adds the outputs of a batch. Returns how many documents are complete by that, in parts.

        examples: the examples of the batch. Raises `NotComputable` where a score is no number.
        """
        complete = 0.0
        request = self._request
        options = request.options
        samples = options.num_return_sequences if options.do_sample else 1
        for row, index in enumerate(examples):
            for column, subtask in enumerate(plan.arrangement.subtasks[index]):
                document, prompt, sample = subtask
                check_computed(outputs.scores[row, column], document, prompt)
                generations = self._reader.generations(
                    outputs, row, column, request, document, prompt
                )
                self._generations.setdefault((document, prompt), {})[sample] = generations
                complete += 1 / (len(request.examples[document].prompts) * samples)
        return complete

    def gather(self, report: DecodingReport) -> bool:
        """Adds the outputs of the other processes, and their reports. True in the first process.

        The others return False and have their own outputs only.
        """
        of_all = exchange.gathered((self._generations, report))
        if of_all is None:
            return False
        for generations, of_process in of_all[1:]:
            report.add(of_process)
            for subtask, samples in generations.items():
                self._generations.setdefault(subtask, {}).update(samples)
        return True

    def nested(self) -> list[list[Generation]]:
        """One list for each document, with one `Generation` for each of its prompts."""
        return [
            [with_alternatives(self._generations[i, j]) for j in range(len(example.prompts))]
            for i, example in enumerate(self._request.examples)
        ]


@dataclass(frozen=True)
class OutputReader:
    """Reads token ids for one model. Text only with a tokenizer."""

    config: Config
    tokenizer: Any | None

    def generations(
        self,
        outputs: Outputs,
        row: int,
        column: int,
        request: Request,
        document: int,
        prompt: int,
    ) -> list[Generation]:
        """The nonempty outputs of one prompt, the best first, or else an empty one.

        row, column: of the batch. document, prompt: of the request. Allowed outputs have the texts
        that the caller wrote, and stop sequences do not apply to them. Of an unfinished output the
        part that may still change is left out: half a character, half a stop sequence.
        """
        finished = bool(outputs.finished[row, column])
        allowed = request.allowed_for(document, prompt)
        stops = _Stops.of(request.options) if allowed is None else _Stops((), ())
        generations = []
        for rank, length in enumerate(outputs.lengths[row, column].tolist()):
            if length == 0:
                continue
            index = row, column, rank
            selected = outputs.tokens[index][:length].tolist()
            tokens = self._tokens(selected, stops, finished)
            read = None if self.tokenizer is None else self._read(tokens)
            texts = allowed.texts if isinstance(allowed, AllowedList) else {}
            text = texts.get(tuple(tokens)) if finished else None
            if text is None and read is not None:
                text = _settled(read, stops, finished)
                if not finished and isinstance(allowed, AllowedList) and texts:
                    text = self._agreed(text, tokens, allowed)
            reason: FinishReason | None = None
            if finished:
                stopped = len(tokens) < length or stop_sequences.contains(read or "", stops.texts)
                forced = self.config.forced_eos_token_id is not None and allowed is None
                at_limit = length == request.max_new_tokens[document][prompt]
                ended = selected[-1] in end_token_ids(self.config)
                reason = "stop" if stopped and not (ended and forced and at_limit) else "length"
            shown = length if finished else len(tokens)
            logprobs = _logprobs(outputs, index, selected[:shown])
            score = float(outputs.scores[index])
            generations.append(Generation(text, tokens, score, (), reason, logprobs))
        if finished and not generations:
            text = None if self.tokenizer is None else ""
            logprobs = None if outputs.logprobs is None else ()
            generations.append(Generation(text, [], NOTHING_FOUND, (), "length", logprobs))
        return generations

    @functools.cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self.tokenizer, control_token_ids(self.config))

    def _agreed(self, text: str, tokens: Sequence[int], allowed: AllowedList) -> str:
        """The part of an unfinished text that all allowed texts with these tokens agree on."""
        of_list, other = self._respelled[0]  # once: another thread may replace it
        if of_list is not allowed:
            texts = allowed.texts.items()
            other = {body: name for body, name in texts if name != self._read(body)}
            self._respelled[0] = allowed, other
        for body, name in other.items():
            if body[: len(tokens)] == tuple(tokens):
                alike = takewhile(lambda pair: pair[0] == pair[1], zip(text, name, strict=False))
                text = text[: len(list(alike))]
        return text

    @functools.cached_property
    def _respelled(self) -> list[tuple[Any, dict[tuple[int, ...], str]]]:
        """The latest list of allowed outputs, and those that decode to another spelling."""
        return [(None, {})]

    def _tokens(self, tokens: list[int], stops: "_Stops", finished: bool) -> list[int]:
        """Without the end token or the stop sequence."""
        if tokens and tokens[-1] in end_token_ids(self.config):
            return tokens[:-1]
        if not finished:
            return tokens[
                : len(tokens) - stop_sequences.partial_stop_length(tuple(tokens), stops.sequences)
            ]
        return tokens[: len(tokens) - stops.ending(tokens)]

    def _read(self, tokens: Sequence[int]) -> str:
        return self._detokenizer.text(tokens)


def _settled(text: str, stops: "_Stops", finished: bool) -> str:
    """The text before the first stop, and of an unfinished text the part that cannot change."""
    text = stop_sequences.cut(text, stops.texts)
    if not finished:
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        text = text[: len(text) - stop_sequences.partial_stop_length(text, stops.texts)]
    return text


def _logprobs(
    outputs: Outputs, index: tuple[int, int, int], tokens: Sequence[int]
) -> tuple[TokenLogprob, ...] | None:
    if outputs.logprobs is None:
        return None
    selected, top, top_tokens = (leaf[index].T.tolist() for leaf in outputs.logprobs)
    return tuple(
        TokenLogprob(token, selected[k], tuple(zip(top_tokens[k], top[k], strict=True)))
        for k, token in enumerate(tokens)
    )


@dataclass(frozen=True, slots=True)
class _Stops:
    """The stop sequences that apply to an output."""

    texts: Sequence[str]
    sequences: Sequence[tuple[int, ...]]

    @classmethod
    def of(cls, options: GenerationOptions) -> "_Stops":
        texts = [stop for stop in options.stop if isinstance(stop, str)]
        return cls(texts, [stop for stop in options.stop if not isinstance(stop, str)])

    def ending(self, tokens: Sequence[int]) -> int:
        """The length of the longest stop sequence at the end."""
        ending = [len(stop) for stop in self.sequences if tuple(tokens[-len(stop) :]) == stop]
        return max(ending, default=0)


def with_alternatives(copies: Mapping[int, Sequence[Generation]]) -> Generation:
    """The first output of a prompt, with the others of the same and of its further samples."""
    first, *others = (generation for _, ranked in sorted(copies.items()) for generation in ranked)
    return dataclasses.replace(first, alternatives=tuple(others)) if others else first


class Cancelled(Exception):
    """A call of `generate` ended before all was generated, because its caller wanted that."""


class NotComputable(UserError):
    """The model's numbers for a prompt are NaN or infinite."""

    def __init__(self, document: int, prompt: int, where: str = "") -> None:
        """where: names the two otherwise than by their indices."""
        self.document, self.prompt = document, prompt
        super().__init__(
            f"{where or f'documents[{document}], prompts[{prompt}]'}: the model computes NaN or "
            "infinity: its weights are damaged, or lead beyond the range of their dtype (float32 "
            "may help a checkpoint that was trained in it)"
        )

    def named(self, document: str, prompt: str) -> "NotComputable":
        """The same with the names that a caller of commands knows."""
        where = f"document {document!r}, prompt {prompt!r}"
        return NotComputable(self.document, self.prompt, where)


def check_computed(scores: object, document: int, prompt: int) -> None:
    """Raises NotComputable where a score is NaN or +inf; -inf is that of what cannot be."""
    if not np.all(np.asarray(scores) < np.inf):
        raise NotComputable(document, prompt)

"""What was decoded, made into what callers of `PidModel` get."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.decoding import stopping
from pid_jax.decoding.engine import Outputs
from pid_jax.decoding.options import GenerationOptions
from pid_jax.errors import UserError
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
    """The likeliest tokens at this place and their log-probabilities, the likeliest first: as
    many as the option `logprobs` says."""


NOTHING_FOUND = -1e9
"""The score of an empty output where beam search found none, as in transformers."""


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


@dataclass(frozen=True)
class Reader:
    """Reads token ids for one model; text only with a tokenizer."""

    config: Config
    tokenizer: Any | None

    def generations(
        self,
        outputs: Outputs,
        row: int,
        column: int,
        options: GenerationOptions,
        spelled: Mapping[tuple[int, ...], str] | None,
    ) -> list[Generation]:
        """The outputs of one prompt that hold any token, the best first; else an empty one.

        spelled: for a prompt with a list of allowed outputs, the texts of the list by their
        tokens: they are returned as they were given, and stop sequences mean nothing to them.
        None for any other prompt. Of an output that is not done, what may yet change is left
        out: half a character, half a stop sequence.
        """
        done = bool(outputs.done[row, column])
        stops = _Stops((), ()) if spelled is not None else _Stops.of(options)
        generations = []
        for rank, length in enumerate(outputs.lengths[row, column].tolist()):
            if length == 0:
                continue
            place = row, column, rank
            chosen = outputs.tokens[place][:length].tolist()
            tokens = self._tokens(chosen, stops, done)
            read = None if self.tokenizer is None else self._read(tokens)
            text = None if spelled is None or not done else spelled.get(tuple(tokens))
            if text is None and read is not None:
                text = _settled(read, stops, done)
                if not done and spelled:
                    text = self._agreed(text, tokens, spelled)
            reason: FinishReason | None = None
            if done:
                stopped = len(tokens) < length or stopping.holds(read or "", stops.texts)
                forced = self.config.forced_eos_token_id is not None and spelled is None
                at_limit = length == options.max_new_tokens
                ended = chosen[-1] in end_token_ids(self.config)
                reason = "stop" if stopped and not (ended and forced and at_limit) else "length"
            shown = length if done else len(tokens)
            logprobs = _logprobs(outputs, place, chosen[:shown])
            score = float(outputs.scores[place])
            generations.append(Generation(text, tokens, score, (), reason, logprobs))
        if done and not generations:
            text = None if self.tokenizer is None else ""
            logprobs = None if outputs.logprobs is None else ()
            generations.append(Generation(text, [], NOTHING_FOUND, (), "length", logprobs))
        return generations

    @functools.cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self.tokenizer, control_token_ids(self.config))

    def _agreed(
        self, text: str, tokens: Sequence[int], spelled: Mapping[tuple[int, ...], str]
    ) -> str:
        """What of an unfinished text holds for every allowed text that it may become."""
        of_list, other = self._respelled[0]  # once: another thread may put its own there
        if of_list is not spelled:
            other = {body: name for body, name in spelled.items() if name != self._read(body)}
            self._respelled[0] = spelled, other
        for body, name in other.items():
            if body[: len(tokens)] == tuple(tokens):
                alike = takewhile(lambda pair: pair[0] == pair[1], zip(text, name, strict=False))
                text = text[: len(list(alike))]
        return text

    @functools.cached_property
    def _respelled(self) -> list[tuple[Any, dict[tuple[int, ...], str]]]:
        """The latest list of allowed outputs, and those in it that decoding spells otherwise."""
        return [(None, {})]

    def _tokens(self, tokens: list[int], stops: "_Stops", done: bool) -> list[int]:
        """Without the end token or the stop sequence."""
        if tokens and tokens[-1] in end_token_ids(self.config):
            return tokens[:-1]
        if not done:
            return tokens[: len(tokens) - stopping.unsettled(tuple(tokens), stops.sequences)]
        return tokens[: len(tokens) - stops.ending(tokens)]

    def _read(self, tokens: Sequence[int]) -> str:
        return self._detokenizer.text(tokens)


def _settled(text: str, stops: "_Stops", done: bool) -> str:
    """What stands before the first stop and, of an unfinished text, cannot change any more."""
    text = stopping.cut(text, stops.texts)
    if not done:
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        text = text[: len(text) - stopping.unsettled(text, stops.texts)]
    return text


def _logprobs(
    outputs: Outputs, place: tuple[int, int, int], tokens: Sequence[int]
) -> tuple[TokenLogprob, ...] | None:
    if outputs.logprobs is None:
        return None
    chosen, top, top_tokens = (leaf[place].T.tolist() for leaf in outputs.logprobs)
    return tuple(
        TokenLogprob(token, chosen[k], tuple(zip(top_tokens[k], top[k], strict=True)))
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
        found = [len(stop) for stop in self.sequences if tuple(tokens[-len(stop) :]) == stop]
        return max(found, default=0)


def with_alternatives(copies: Mapping[int, Sequence[Generation]]) -> Generation:
    """The first output of a prompt, with the others of the same and of its further samples."""
    first, *others = (generation for _, made in sorted(copies.items()) for generation in made)
    return dataclasses.replace(first, alternatives=tuple(others)) if others else first


class NotComputable(UserError):
    """The model's numbers for a prompt are NaN or infinite."""

    def __init__(self, document: int, prompt: int, place: str = "") -> None:
        """`place` names the two otherwise than by their indices."""
        self.document, self.prompt = document, prompt
        super().__init__(
            f"{place or f'documents[{document}], prompts[{prompt}]'}: the model computes NaN or "
            "infinity: its weights are damaged, or lead beyond the range of their dtype (float32 "
            "may help a checkpoint that was trained in it)"
        )

    def named(self, document: str, prompt: str) -> "NotComputable":
        """The same with the names that a caller of commands knows."""
        place = f"document {document!r}, prompt {prompt!r}"
        return NotComputable(self.document, self.prompt, place)


def check_computed(scores: object, document: int, prompt: int) -> None:
    """Raises NotComputable where a score is NaN or +inf; -inf is that of what cannot be."""
    if not np.all(np.asarray(scores) < np.inf):
        raise NotComputable(document, prompt)

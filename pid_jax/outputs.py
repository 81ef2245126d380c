"""What was decoded, made into what callers of `PidModel` get."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.decoding import stopping
from pid_jax.decoding.engine import Outputs
from pid_jax.decoding.options import GenerationOptions
from pid_jax.models.protocol import Config, control_token_ids, end_token_ids


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
        """The outputs of one prompt that hold any token, the best first.

        spelled: for a prompt with a list of allowed outputs, the texts of the list by their
        tokens: they are returned as they were given, and stop sequences mean nothing to them.
        None for any other prompt. Of an output that is not done, what may yet change is left
        out: half a character, half a stop sequence.
        """
        done = bool(outputs.done[row, column])
        stops = _Stops((), ()) if spelled is not None else _Stops.of(options)
        found = zip(
            outputs.tokens[row, column],
            outputs.lengths[row, column],
            outputs.scores[row, column],
            strict=True,
        )
        generations = []
        for padded, length, score in found:
            if length:
                tokens = self._tokens(padded[:length].tolist(), stops, done)
                text = None if spelled is None or not done else spelled.get(tuple(tokens))
                if text is None:
                    text = self._text(tokens, stops, done)
                if not done and spelled and text is not None:
                    text = self._agreed(text, tokens, spelled)
                generations.append(Generation(text, tokens, float(score)))
        return generations

    @functools.cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self.tokenizer, control_token_ids(self.config))

    def _agreed(
        self, text: str, tokens: Sequence[int], spelled: Mapping[tuple[int, ...], str]
    ) -> str:
        """What of an unfinished text holds for every allowed text that it may become."""
        if self._respelled[0] is not spelled:
            other = {body: name for body, name in spelled.items() if name != self._read(body)}
            self._respelled[:] = spelled, other
        for body, name in self._respelled[1].items():
            if body[: len(tokens)] == tuple(tokens):
                text = os.path.commonprefix([text, name])
        return text

    @functools.cached_property
    def _respelled(self) -> list[Any]:
        """The latest list of allowed outputs, and those in it that decoding spells otherwise."""
        return [None, {}]

    def _tokens(self, tokens: list[int], stops: "_Stops", done: bool) -> list[int]:
        """Without the end token or the stop sequence."""
        if tokens and tokens[-1] in end_token_ids(self.config):
            return tokens[:-1]
        if not done:
            return tokens[: len(tokens) - stopping.unsettled(tuple(tokens), stops.sequences)]
        return tokens[: len(tokens) - stops.ending(tokens)]

    def _read(self, tokens: Sequence[int]) -> str:
        return self._detokenizer.text(tokens)

    def _text(self, tokens: Sequence[int], stops: "_Stops", done: bool) -> str | None:
        if self.tokenizer is None:
            return None
        text = stopping.cut(self._read(tokens), stops.texts)
        if not done:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            text = text[: len(text) - stopping.unsettled(text, stops.texts)]
        return text


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

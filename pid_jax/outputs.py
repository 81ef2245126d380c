"""What was decoded, made into what callers of `PidModel` get."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pid_jax.decoding import stopping
from pid_jax.decoding.engine import Outputs
from pid_jax.decoding.options import GenerationOptions
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, end_token_ids


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated for one prompt."""

    text: str | None
    """None where the model has no tokenizer."""
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
        spelled: Mapping[tuple[int, ...], str],
    ) -> list[Generation]:
        """The outputs of one prompt that hold any token, the best first.

        spelled: the texts of its list of allowed outputs, by their tokens. Of an output that is
        not done, what may yet change is left out: half a character, half a stop sequence.
        """
        done = bool(outputs.done[row, column])
        found = zip(
            outputs.tokens[row, column],
            outputs.lengths[row, column],
            outputs.scores[row, column],
            strict=True,
        )
        generations = []
        for padded, length, score in found:
            if length:
                tokens = self._tokens(padded[:length].tolist(), options, done)
                text = spelled.get(tuple(tokens))
                if text is None:
                    text = self._text(tokens, options, done)
                generations.append(Generation(text, tokens, float(score)))
        return generations

    def _tokens(self, tokens: list[int], options: GenerationOptions, done: bool) -> list[int]:
        """Without the end token or the stop sequence."""
        if tokens and tokens[-1] in end_token_ids(self.config):
            tokens = tokens[:-1]
        sequences = [stop for stop in options.stop if not isinstance(stop, str)]
        if not done:
            return tokens[: len(tokens) - stopping.unsettled(tuple(tokens), sequences)]
        ending = [len(stop) for stop in sequences if tuple(tokens[-len(stop) :]) == stop]
        return tokens[: len(tokens) - max(ending, default=0)]

    def _text(self, tokens: Sequence[int], options: GenerationOptions, done: bool) -> str | None:
        if self.tokenizer is None:
            return None
        strings = [stop for stop in options.stop if isinstance(stop, str)]
        text = stopping.cut(self.tokenizer.decode(tokens, skip_special_tokens=True), strings)
        if not done:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            text = text[: len(text) - stopping.unsettled(text, strings)]
        return text.strip()


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

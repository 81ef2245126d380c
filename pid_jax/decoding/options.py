"""What a caller may ask of decoding: `GenerationOptions`, and its two halves for the compiler.

What changes the program (beams, sampling, sizes) is a `Strategy`, static under `jax.jit`; what
is only a number in it is a leaf of `Controls`, so another temperature compiles nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pid_jax import arguments
from pid_jax.data import sequences
from pid_jax.data.batching import Arr
from pid_jax.decoding.barring import BarredWords, SuppressedTokens
from pid_jax.decoding.beam import EarlyStopping
from pid_jax.decoding.constraints import PrefixForest
from pid_jax.decoding.stopping import StopAutomaton
from pid_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What shapes the decoding program. Hashable: a static argument."""

    num_beams: int = 1
    early_stopping: EarlyStopping = False
    do_sample: bool = False
    top_k: int = 0
    """0: all tokens."""
    with_top_p: bool = False
    with_repetition_penalty: bool = False
    no_repeat_ngram_size: int = 0
    """0: any n-gram may come again."""
    draft_tokens: int = 0
    """Tokens guessed from the document in each call of the decoder; 0: none."""
    draft_ngram: int = 0
    """The most tokens at an output's end that are sought in the document."""
    logprobs: int | None = None
    """How many of the likeliest tokens are kept beside each one chosen; None: nothing is."""


class Controls(NamedTuple):
    """The numbers and tables that a decoding program reads; a pytree."""

    max_new_tokens: Int[Arr, ""]
    min_new_tokens: Int[Arr, ""]
    temperature: Float[Arr, ""]
    top_p: Float[Arr, ""]
    repetition_penalty: Float[Arr, ""]
    length_penalty: Float[Arr, ""]
    stops: StopAutomaton | None
    forest: PrefixForest | None
    words: BarredWords | None
    suppressed: SuppressedTokens | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How outputs are chosen. Options named as those of transformers' `generate` mean the same.

    Raises `UserError` for values that do not fit, or do not fit together.
    """

    max_new_tokens: int = 32
    """The longest output; the end token counts as one."""
    min_new_tokens: int = 0
    """The end token cannot come before so many others."""
    num_beams: int = 1
    """Above 1: beam search with so many beams, all against the one encoding of the document."""
    length_penalty: float = 1.0
    """Beams are ranked by sum of log-probabilities / length ** length_penalty."""
    early_stopping: EarlyStopping = False
    """When beam search stops: True once num_beams outputs have ended, False once the running
    ones look no better than those, "never" once they cannot become better."""
    num_return_sequences: int = 1
    """The n best outputs of beam search, or n samples: the first is the Generation, the others
    its `alternatives`."""
    do_sample: bool = False
    """Draw tokens from the model's distribution instead of taking the likeliest."""
    temperature: float = 1.0
    """Sampling: logits are divided by it."""
    top_k: int = 0
    """Sampling: only among the k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sampling: only among the fewest likeliest tokens whose probabilities sum to top_p."""
    seed: int = 0
    """Sampling: what is drawn depends on it, on the document and on the prompt, and on nothing
    else: neither batch mates nor order. The same prompt of the same document draws the same."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and of the output so far become less likely."""
    no_repeat_ngram_size: int = 0
    """No n-gram of prompt and output comes twice; 0: it may."""
    stop: Iterable[Any] = ()
    """An output also ends where it holds one of these texts, or of these lists of token ids;
    its text ends before it. Outputs held to a list of allowed ones are not ended so."""
    suppress_tokens: Sequence[int] = ()
    """These token ids never come. (Unless an output is held to a list, and nothing else is left
    of it: this is true of all rules.)"""
    begin_suppress_tokens: Sequence[int] = ()
    """These token ids do not come first in an output."""
    bad_words_ids: Sequence[Sequence[int]] = ()
    """None of these sequences of token ids is completed in prompt and output."""
    draft_tokens: int = 0
    """Greedy decoding only: so many tokens are guessed from the document at every step, and
    checked in one call of the decoder. Outputs are the same; where they quote the document,
    they need fewer calls (see `pid_jax.decoding.drafting`)."""
    draft_ngram: int = 3
    """The longest end of an output that is sought in the document for such a guess."""
    logprobs: int | None = None
    """Return the log-probability of each token of an output, and of so many of the likeliest
    tokens at its place; 0: only of the output's own."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(GenerationOptions):
            # Plain and hashable, and safe from what the caller does to its lists later.
            value = read_option(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        self._check_numbers()
        self._check_effects()
        if self.num_beams > 1 and self.do_sample:
            raise UserError("num_beams > 1 and do_sample=True do not go together: choose one")
        if self.num_return_sequences > self.num_beams and not self.do_sample:
            raise UserError(
                f"num_return_sequences={self.num_return_sequences} needs at least as many beams, "
                f"or do_sample=True: num_beams={self.num_beams}"
            )
        if self.draft_tokens and (
            self.num_beams > 1
            or self.do_sample
            or self.repetition_penalty != 1
            or self.no_repeat_ngram_size
        ):
            raise UserError(
                "draft_tokens is for greedy decoding: not with num_beams, do_sample, "
                "repetition_penalty or no_repeat_ngram_size"
            )

    def _check_effects(self) -> None:
        """Nothing that was asked for is silently without effect."""
        needs = {
            "do_sample=True": (self.do_sample, ("temperature", "top_k", "top_p")),
            "num_beams > 1": (self.num_beams > 1, ("length_penalty", "early_stopping")),
            "draft_tokens > 0": (self.draft_tokens > 0, ("draft_ngram",)),
        }
        defaults = {field.name: field.default for field in dataclasses.fields(GenerationOptions)}
        for need, (met, names) in needs.items():
            for name in names:
                if not met and getattr(self, name) != defaults[name]:
                    raise UserError(
                        f"{name}={getattr(self, name)} has an effect only with {need}: give both "
                        "or neither"
                    )

    def _check_numbers(self) -> None:
        if (
            not 1 <= self.max_new_tokens < 2**31
            or not 0 <= self.min_new_tokens <= self.max_new_tokens
        ):
            raise UserError(
                "max_new_tokens must be at least 1 and min_new_tokens between 0 and it, not "
                f"max_new_tokens={self.max_new_tokens} and min_new_tokens={self.min_new_tokens}"
            )
        for name in ("temperature", "repetition_penalty"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty must be finite, not {self.length_penalty}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    def least_in_lists(self) -> int:
        """How many tokens an allowed output must have."""
        return self.min_new_tokens

    def cut_to(self, most: int) -> "GenerationOptions":
        """The same for a model that has positions for so long an output; a given length stays."""
        del most
        return self

    def strategy(self) -> Strategy:
        """The half that is compiled in."""
        beams = self.num_beams > 1
        return Strategy(
            num_beams=self.num_beams,
            early_stopping=self.early_stopping if beams else False,
            do_sample=self.do_sample,
            top_k=self.top_k if self.do_sample else 0,
            with_top_p=self.do_sample and self.top_p < 1,
            with_repetition_penalty=self.repetition_penalty != 1,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            draft_tokens=self.draft_tokens,
            draft_ngram=self.draft_ngram if self.draft_tokens else 0,
            logprobs=self.logprobs,
        )

    def controls(
        self,
        stops: StopAutomaton | None,
        forest: PrefixForest | None,
        words: BarredWords | None = None,
        suppressed: SuppressedTokens | None = None,
    ) -> Controls:
        """The half that is read at run time, with the tables made for it."""
        return Controls(
            max_new_tokens=np.asarray(self.max_new_tokens, np.int32),
            min_new_tokens=np.asarray(self.min_new_tokens, np.int32),
            temperature=_float32(self.temperature, 1e-30, 1e30),
            top_p=_float32(self.top_p, 1e-30, 1.0),
            repetition_penalty=_float32(self.repetition_penalty, 1e-30, 1e30),
            length_penalty=_float32(self.length_penalty, -1e30, 1e30),
            stops=stops,
            forest=forest,
            words=words,
            suppressed=suppressed,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions(GenerationOptions):
    """Options of which some are a checkpoint's, not a caller's."""

    of_checkpoint: frozenset[str] = frozenset()

    def least_in_lists(self) -> int:
        """None of a checkpoint's: it was set for other outputs than those of lists."""
        return 0 if "min_new_tokens" in self.of_checkpoint else super().least_in_lists()

    def cut_to(self, most: int) -> GenerationOptions:
        """With the lengths that are the checkpoint's cut to what there are positions for."""
        if "max_new_tokens" not in self.of_checkpoint:
            return self
        longest = min(self.max_new_tokens, max(most, 1))
        least = self.min_new_tokens
        if "min_new_tokens" in self.of_checkpoint:
            least = min(least, longest)
        return dataclasses.replace(self, max_new_tokens=longest, min_new_tokens=least)


def read_option(name: str, value: Any) -> Any:
    """One option's value, plain and hashable; raises `UserError` for another type than its own."""
    return _READERS[name](name, value)


def _at_least(lowest: int) -> Callable[[str, Any], int]:
    return lambda name, value: arguments.integer(name, value, lowest)


def _early_stopping(name: str, value: Any) -> EarlyStopping:
    if isinstance(value, str) and value == "never":
        return "never"
    if not isinstance(value, bool | np.bool_):
        raise UserError(f'{name} must be True, False or "never", not {value!r}')
    return bool(value)


def _stop(name: str, value: Any) -> tuple[str | tuple[int, ...], ...]:
    return sequences.texts_or_ids(value, name, "a list of texts or lists of token ids")


def _logprobs(name: str, value: Any) -> int | None:
    return None if value is None else arguments.integer(name, value, 0)


_READERS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "max_new_tokens": arguments.integer,
        "min_new_tokens": arguments.integer,
        "num_beams": _at_least(1),
        "length_penalty": arguments.real,
        "early_stopping": _early_stopping,
        "num_return_sequences": _at_least(1),
        "do_sample": arguments.flag,
        "temperature": arguments.real,
        "top_k": _at_least(0),
        "top_p": arguments.real,
        "seed": arguments.integer,
        "repetition_penalty": arguments.real,
        "no_repeat_ngram_size": _at_least(0),
        "stop": _stop,
        "suppress_tokens": arguments.token_ids,
        "begin_suppress_tokens": arguments.token_ids,
        "bad_words_ids": arguments.token_lists,
        "draft_tokens": _at_least(0),
        "draft_ngram": _at_least(1),
        "logprobs": _logprobs,
    }
)


def _float32(value: float, lowest: float, highest: float) -> Float[np.ndarray, ""]:
    """Within bounds at which no product overflows into NaN, nor a quotient."""
    return np.asarray(min(max(value, lowest), highest), np.float32)

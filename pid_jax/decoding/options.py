"""`GenerationOptions`: what a caller may set for decoding.

Each field names its default, how its value is read, and the logits processor that implements it, if
any. `generate` accepts every field by name, and so do the commands unless `flag=False`. The option
of a logits processor can also be set by a checkpoint's `generation_config.json`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from pid_jax import arguments
from pid_jax.data import sequences
from pid_jax.decoding import logits_processors as processors
from pid_jax.decoding.automata import Automata
from pid_jax.decoding.beam_search import BeamSearch, EarlyStopping
from pid_jax.decoding.decoding_options import DecodingOptions, PromptLookup
from pid_jax.decoding.search import GreedySearch, Sampling
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config

Read = Callable[[str, Any], Any]
"""Makes a value plain, given the option's name. Raises `UserError` for other types."""


def option(
    default: Any,
    read: Read,
    processor: Any = None,
    *,
    sampling: bool = False,
    always: bool = False,
    flag: bool = True,
) -> Any:
    """A field of `GenerationOptions`.

    processor: the class of a logits processor with `create(value, config)`. It is applied where
    the value is not the default, after those of the fields before it. sampling: it applies only to
    sampling, after all others. always: it is applied at the default too, so that another value
    compiles nothing. flag: whether commands have a flag for it.
    """
    metadata = {
        "read": read,
        "processor": processor,
        "sampling": sampling,
        "always": always,
        "flag": flag,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _at_least(lowest: int) -> Read:
    return lambda name, value: arguments.integer(name, value, lowest)


def _above_zero(name: str, value: Any) -> float:
    number = arguments.real(name, value)
    if not 0 < number < math.inf:
        raise UserError(f"{name} must be above 0 and finite, not {number}")
    return number


def _finite(name: str, value: Any) -> float:
    number = arguments.real(name, value)
    if not math.isfinite(number):
        raise UserError(f"{name} must be finite, not {number}")
    return number


def _probability(name: str, value: Any) -> float:
    number = arguments.real(name, value)
    if not 0 < number <= 1:
        raise UserError(f"{name} must be above 0 and at most 1, not {number}")
    return number


def _share(name: str, value: Any) -> float:
    number = arguments.real(name, value)
    if not 0 <= number <= 1:
        raise UserError(f"{name} must be at least 0 and at most 1, not {number}")
    return number


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


def _functions(name: str, value: Any) -> tuple[Any, ...]:
    functions = sequences.items(value, name, "a list of functions (logits, context) -> logits")
    for i, function in enumerate(functions):
        if isinstance(function, type):
            raise UserError(f"{name}[{i}] is the class {function.__name__}: give an instance of it")
        if not callable(function):
            raise UserError(f"{name}[{i}] must be a function, not {sequences.kind(function)}")
    return tuple(functions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How outputs are selected. Options with a name that transformers has mean the same.

    Raises `UserError` for values that do not fit, alone or combined.
    """

    max_new_tokens: int = option(32, arguments.integer)
    """Maximum number of new tokens, including the end token."""
    num_beams: int = option(1, _at_least(1))
    """Above 1: beam search with this number of beams, all against one encoding of the document."""
    length_penalty: float = option(1.0, _finite)
    """Beam search: outputs rank by sum of log-probabilities / length ** length_penalty."""
    early_stopping: EarlyStopping = option(False, _early_stopping)
    """Beam search stops: True once num_beams outputs have finished, False once the running ones
    look no better than those, "never" once they cannot become better."""
    num_return_sequences: int = option(1, _at_least(1))
    """The n best outputs of beam search, or n samples. The first is the Generation, the others are
    its `alternatives`."""
    do_sample: bool = option(False, arguments.flag)
    """Draw tokens from the model's distribution instead of selecting the likeliest."""
    seed: int = option(0, arguments.integer)
    """Sampling depends on the seed, the document and the prompt only, not on the batch. The same
    prompt of the same document draws the same."""
    stop: Iterable[Any] = option((), _stop)
    """An output also ends where it contains one of these texts, or of these lists of token ids.
    Its text ends before it. Allowed outputs are exempt."""
    draft_tokens: int = option(0, _at_least(0))
    """Greedy decoding: the number of tokens that prompt lookup guesses from the document in each
    step. Outputs are the same. Where they quote the document, they need fewer decoder calls (see
    `pid_jax.decoding.prompt_lookup`)."""
    draft_ngram: int = option(3, _at_least(1))
    """Prompt lookup: the longest end of an output that is looked up in the document."""
    logprobs: int | None = option(None, _logprobs)
    """Return the log-probability of each token of an output, and of this number of the likeliest
    tokens in its position. 0: only of the output's own."""

    # Logits processors, in the order in which they are applied, which is that of transformers.
    encoder_repetition_penalty: float = option(
        1.0, _above_zero, processors.EncoderRepetitionPenalty
    )
    """Above 1, tokens of the document become likelier."""
    repetition_penalty: float = option(1.0, _above_zero, processors.RepetitionPenalty)
    """Above 1, tokens of the prompt and of the output so far become less likely."""
    no_repeat_ngram_size: int = option(0, _at_least(0), processors.NoRepeatNgram)
    """No n-gram of prompt and output occurs twice. 0: it may."""
    encoder_no_repeat_ngram_size: int = option(0, _at_least(0), processors.EncoderNoRepeatNgram)
    """No new token completes an n-gram of the document. The prompt counts as context. 0: no
    restriction."""
    bad_words_ids: Sequence[Sequence[int]] = option((), arguments.token_lists, processors.BadWords)
    """No new token completes one of these sequences of token ids. The prompt counts as context."""
    min_new_tokens: int = option(0, arguments.integer, processors.MinNewTokens, always=True)
    """The minimum number of tokens before the end token."""
    suppress_tokens: Sequence[int] = option((), arguments.token_ids, processors.SuppressTokens)
    """These tokens are never generated, unless an allowed output requires one. The same exception
    applies to every logits processor."""
    begin_suppress_tokens: Sequence[int] = option(
        (), arguments.token_ids, processors.BeginSuppressTokens
    )
    """These token ids do not come first in an output."""
    logits_processors: Sequence[Any] = option((), _functions, flag=False)
    """Functions `(logits, context) -> logits`, applied after the ones above (see
    `pid_jax.decoding.logits_processors`)."""
    temperature: float = option(
        1.0, _above_zero, processors.Temperature, sampling=True, always=True
    )
    """Sampling: logits are divided by it."""
    top_k: int = option(0, _at_least(0), processors.TopK, sampling=True)
    """Sampling: only the k likeliest tokens. 0: all."""
    top_p: float = option(1.0, _probability, processors.TopP, sampling=True)
    """Sampling: only the fewest likeliest tokens whose probabilities sum to top_p."""
    min_p: float = option(0.0, _share, processors.MinP, sampling=True)
    """Sampling: only tokens at least min_p times as likely as the likeliest."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(GenerationOptions):
            # Plain and hashable, and independent of later changes to the caller's lists.
            value = read_option(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if (
            not 1 <= self.max_new_tokens < 2**31
            or not 0 <= self.min_new_tokens <= self.max_new_tokens
        ):
            raise UserError(
                "max_new_tokens must be at least 1 and min_new_tokens between 0 and it, not "
                f"max_new_tokens={self.max_new_tokens} and min_new_tokens={self.min_new_tokens}"
            )
        self._check_effects()
        if self.num_beams > 1 and self.do_sample:
            raise UserError("num_beams > 1 and do_sample=True exclude each other: give one of them")
        if self.num_return_sequences > self.num_beams and not self.do_sample:
            raise UserError(
                f"num_return_sequences={self.num_return_sequences} needs at least as many beams, "
                f"or do_sample=True: num_beams={self.num_beams}"
            )
        if self.draft_tokens and (self.num_beams > 1 or self.do_sample):
            raise UserError(
                "draft_tokens is for greedy decoding, not for num_beams > 1 or do_sample=True"
            )

    def _check_effects(self) -> None:
        """No option of a caller is silently without effect."""
        needs = {
            "do_sample=True": (self.do_sample, SAMPLING_OPTIONS),
            "num_beams > 1": (self.num_beams > 1, ("length_penalty", "early_stopping")),
            "draft_tokens > 0": (self.draft_tokens > 0, ("draft_ngram",)),
        }
        for need, (met, names) in needs.items():
            for name in names:
                if not met and getattr(self, name) != DEFAULTS[name]:
                    raise UserError(
                        f"{name}={getattr(self, name)} has an effect only with {need}: give both "
                        "or neither"
                    )

    def min_tokens_of_allowed(self) -> int:
        """The least number of tokens of an allowed output."""
        return self.min_new_tokens

    def limited_to(self, max_new_tokens: int) -> "GenerationOptions":
        """For a model without positions for longer outputs. A caller's own length stays."""
        del max_new_tokens
        return self

    def compiled(self, config: Config, automata: Automata) -> DecodingOptions:
        """The pytree that compiled programs read. Raises `UserError` for ids of no token."""
        search: Any = GreedySearch()
        if self.do_sample:
            search = Sampling(self._processors(config, sampling=True))
        elif self.num_beams > 1:
            penalty = processors.float32(self.length_penalty, -1e30, 1e30)
            search = BeamSearch(penalty, self.num_beams, self.early_stopping)
        lookup = PromptLookup(self.draft_tokens, self.draft_ngram) if self.draft_tokens else None
        own = tuple(map(_as_tree, self.logits_processors))
        applied = (*self._processors(config, sampling=False), *own)
        return DecodingOptions(
            search,
            applied,
            automata,
            lookup,
            forces_end=config.forced_eos_token_id is not None,
            logprobs=self.logprobs,
        )

    def _processors(self, config: Config, *, sampling: bool) -> tuple[Any, ...]:
        created = []
        for field in dataclasses.fields(GenerationOptions):
            processor, value = field.metadata["processor"], getattr(self, field.name)
            if processor is None or field.metadata["sampling"] != sampling:
                continue
            if field.metadata["always"] or value != field.default:
                created.append(processor.create(value, config))
            if processor is processors.MinNewTokens and self.min_tokens_of_allowed() < value:
                created[-1] = created[-1].replace(exempts_patterns=True)
            if processor is processors.MinNewTokens:  # the order of transformers
                created.append(processors.ForcedTokens.create(config))
        return tuple(one for one in created if one is not None)


_FIELDS = {field.name: field for field in dataclasses.fields(GenerationOptions)}
DEFAULTS = {name: field.default for name, field in _FIELDS.items()}
"""The default of each option."""
PROCESSOR_OPTIONS = tuple(name for name, field in _FIELDS.items() if field.metadata["processor"])
"""The options of logits processors."""
SAMPLING_OPTIONS = tuple(name for name, field in _FIELDS.items() if field.metadata["sampling"])
"""The options that have an effect on sampling only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions(GenerationOptions):
    """Options some of which come from a checkpoint instead of a caller."""

    of_checkpoint: frozenset[str] = frozenset()

    def min_tokens_of_allowed(self) -> int:
        """A checkpoint's minimum does not apply: it was set for free text."""
        return 0 if "min_new_tokens" in self.of_checkpoint else super().min_tokens_of_allowed()

    def limited_to(self, max_new_tokens: int) -> GenerationOptions:
        """Lowers the checkpoint's lengths to the positions of the model."""
        if "max_new_tokens" not in self.of_checkpoint:
            return self
        longest = min(self.max_new_tokens, max(max_new_tokens, 1))
        least = self.min_new_tokens
        if "min_new_tokens" in self.of_checkpoint:
            least = min(least, longest)
        return dataclasses.replace(self, max_new_tokens=longest, min_new_tokens=least)


def read_option(name: str, value: Any) -> Any:
    """One option's value, plain and hashable. Raises `UserError` for a value of another type."""
    return _FIELDS[name].metadata["read"](name, value)


def _as_tree(function: Any) -> Any:
    """A function that is no pytree becomes part of the program. Leaves become arrays."""
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(function)):
        return processors.PlainFunction(function)
    return jax.tree.map(_as_array, function)


def _as_array(leaf: Any) -> np.ndarray:
    """On the host, in the type that it has on a device: another type is another program."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))

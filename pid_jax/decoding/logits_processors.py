"""Logits processors: what the options of a call change in the logits of each decode step.

A logits processor is a function `(logits, context) -> logits`. The ones here are dataclasses and
pytrees. Their numbers and tables are leaves, so that another value compiles nothing. What is part
of the program is a static field. Each has a class method `create(value, config)`, which makes
it from the value of the option of `GenerationOptions` that names it.

The page docs/adding_a_logits_processor.md adds one step by step.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends import selection
from pid_jax.data.batching import Arr, power_of_two
from pid_jax.decoding import logits as functions
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, end_token_ids

Leaf = Any
"""A scalar or an array, or what represents one in a tree: a shape, a sharding, a tracer."""


class LogitsContext(NamedTuple):
    """What a logits processor may read besides the logits, for R rows of each prompt.

    A row is a beam of beam search, or one of several positions of an output that are verified in
    one step. An array whose axis R has size 1 is the same for all rows.
    """

    unprocessed: Float[Array, "B P R V"]
    """The logits as the model gives them (under beam search, the log-probabilities)."""
    history: Int[Array, "B P R L"]
    """The input of the decoder so far: `[start ; prompt ; output]`, left-padded."""
    history_mask: Bool[Array, "B P R L"]
    """True for the tokens that precede the next one, False for padding and later columns."""
    length: Int[Array, "B P R"]
    """The number of columns of `history` that precede the next token, padding included."""
    step: Int[Array, "B P R"]
    """The number of tokens of the output that precede the next one."""
    max_new_tokens: Int[Array, "B P 1"]
    has_prompt: Bool[Array, "B P 1"]
    """False where the decoder's input is the start token only."""
    has_allowed_list: Bool[Array, "B P R"]
    """True where the output is one of a list of allowed outputs."""
    has_pattern: Bool[Array, "B P R"]
    """True where the output matches a regular expression or a JSON schema."""
    documents: Int[Arr, "B S"]
    document_mask: Bool[Arr, "B S"]


class LogitsProcessor(Protocol):
    """A pure function of logits: a plain function, or a pytree with `__call__`."""

    def __call__(
        self, logits: Float[Array, "B P R V"], context: LogitsContext
    ) -> Float[Array, "B P R V"]: ...


@flax.struct.dataclass
class PlainFunction:
    """A caller's own function as a pytree without leaves. Another function is another program."""

    function: Any = flax.struct.field(pytree_node=False)

    def __call__(self, logits: Array, context: LogitsContext) -> Any:
        """Calls the function."""
        return self.function(logits, context)


class OfNumber:
    """A processor whose one field is a number of its option, a leaf."""

    @classmethod
    def create(cls: Any, value: float, config: Config) -> Any:
        """value: above 0 and finite."""
        del config
        return cls(float32(value, 1e-30, 1e30))


class OfSize:
    """A processor whose one field is a whole number that is part of the program."""

    @classmethod
    def create(cls: Any, value: int, config: Config) -> Any:
        """value: at least 1."""
        del config
        return cls(value)


@flax.struct.dataclass
class EncoderRepetitionPenalty:
    """Above 1, tokens of the document become likelier."""

    penalty: Leaf

    @classmethod
    def create(cls, value: float, config: Config) -> "EncoderRepetitionPenalty":
        """value: above 0 and finite."""
        del config
        return cls(float32(1 / value, 1e-30, 1e30))

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `logits.penalize_repetition`, with the inverse of the penalty."""
        tokens, mask = _documents(logits, context)
        return functions.penalize_repetition(logits, tokens, mask, self.penalty)


@flax.struct.dataclass
class RepetitionPenalty(OfNumber):
    """Above 1, tokens of the prompt and of the output so far become less likely."""

    penalty: Leaf

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `logits.penalize_repetition`."""
        return functions.penalize_repetition(
            logits, context.history, context.history_mask, self.penalty
        )


@flax.struct.dataclass
class NoRepeatNgram(OfSize):
    """No n-gram of prompt and output occurs twice, unless every token would be barred."""

    size: int = flax.struct.field(pytree_node=False)

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `logits.bar_repeated_ngrams`."""
        processed = functions.bar_repeated_ngrams(
            logits, context.history, context.history_mask, context.length, self.size
        )
        return functions.unless_all_barred(processed, context.unprocessed)


@flax.struct.dataclass
class EncoderNoRepeatNgram(OfSize):
    """Bars tokens that complete an n-gram of the document. Prompt and output are the context."""

    size: int = flax.struct.field(pytree_node=False)

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `logits.bar_ngrams_of`."""
        tokens, mask = _documents(logits, context)
        # A history shorter than the n-gram has nothing to complete.
        precedes = context.history_mask.sum(axis=-1) >= self.size - 1
        processed = functions.bar_ngrams_of(
            logits, tokens, mask, context.history, context.length, self.size
        )
        return jnp.where(precedes[..., None], processed, logits)


@flax.struct.dataclass
class BadWords:
    """None of some sequences of tokens is completed.

    The sizes of the tables are powers of two: other words of about the same number and length
    make the same shapes, and compile nothing.
    """

    single: Leaf
    """`Bool[" V"]`: the words of one token."""
    prefixes: Leaf
    """`Int["words prefix"]`: see `logits.bar_words`."""
    last: Leaf
    """`Int[" words"]`; V for the padding."""

    @classmethod
    def create(cls, value: Sequence[Sequence[int]], config: Config) -> "BadWords | None":
        """value: the words. A word that is only an end token is ignored, as in transformers.

        Raises `UserError` for an id that no token has.
        """
        words = [word for word in value if len(word) > 1 or word[0] not in end_token_ids(config)]
        if not words:
            return None
        for word in words:
            _check_ids("bad_words_ids", word, config.vocab_size)
        longer = [word for word in words if len(word) > 1]
        longest = max((len(word) - 1 for word in longer), default=1)
        shape = power_of_two(len(longer), 4), power_of_two(longest, 2)
        prefixes = np.full(shape, functions.ANY, np.int32)
        last = np.full(shape[0], config.vocab_size, np.int32)
        for row, word in enumerate(longer):
            prefixes[row, -(len(word) - 1) :] = word[:-1]
            last[row] = word[-1]
        single = [word[0] for word in words if len(word) == 1]
        return cls(_marked("bad_words_ids", single, config.vocab_size), prefixes, last)

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `logits.bar_words`."""
        logits = functions.bar_words(
            logits,
            context.history,
            context.history_mask,
            context.length,
            self.prefixes,
            self.last,
        )
        return jnp.where(self.single, -jnp.inf, logits)


@flax.struct.dataclass
class MinNewTokens:
    """The end tokens do not come before some number of other tokens.

    Outputs of a list of allowed outputs are exempt: the list is checked when it is read. A pattern
    that allows nothing but the end token has priority.
    """

    minimum: Leaf
    end_tokens: tuple[int, ...] = flax.struct.field(pytree_node=False)
    exempts_patterns: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether the minimum is a checkpoint's, which was set for free text."""

    @classmethod
    def create(cls, value: int, config: Config) -> "MinNewTokens":
        """value: the number of tokens."""
        return cls(np.asarray(value, np.int32), end_token_ids(config))

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `logits.bar_tokens`."""
        too_early = (context.step < self.minimum) & ~context.has_allowed_list
        if self.exempts_patterns:
            too_early &= ~context.has_pattern
        return functions.bar_tokens(logits, self.end_tokens, too_early)


@flax.struct.dataclass
class ForcedTokens:
    """The first and the last token that a model's configuration names."""

    first: int | None = flax.struct.field(pytree_node=False)
    last: int | None = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, config: Config) -> "ForcedTokens | None":
        """None for a configuration without such tokens."""
        forced = config.forced_bos_token_id, config.forced_eos_token_id
        return None if forced == (None, None) else cls(*forced)

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """After a prompt transformers forces no first token."""
        if self.first is not None:
            is_first = (context.step == 0) & ~context.has_prompt
            logits = functions.force_token(logits, self.first, is_first)
        if self.last is not None:
            is_last = context.step + 1 == context.max_new_tokens
            logits = functions.force_token(logits, self.last, is_last)
        return logits


@flax.struct.dataclass
class SuppressTokens:
    """Some tokens never come."""

    tokens: Leaf
    """`Bool[" V"]`."""

    @classmethod
    def create(cls, value: Sequence[int], config: Config) -> "SuppressTokens":
        """value: token ids. Raises `UserError` for an id that no token has."""
        return cls(_marked("suppress_tokens", value, config.vocab_size))

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """Bars the tokens."""
        return jnp.where(self.tokens, -jnp.inf, logits)


@flax.struct.dataclass
class BeginSuppressTokens:
    """Some tokens do not come first. After a forced first token, that means second."""

    tokens: Leaf
    """`Bool[" V"]`."""
    first_is_forced: bool = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, value: Sequence[int], config: Config) -> "BeginSuppressTokens":
        """value: token ids. Raises `UserError` for an id that no token has."""
        tokens = _marked("begin_suppress_tokens", value, config.vocab_size)
        return cls(tokens, config.forced_bos_token_id is not None)

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """Bars the tokens in the rows without a token."""
        first = jnp.where(self.first_is_forced & ~context.has_prompt, 1, 0)
        is_first = context.step == first
        return jnp.where(self.tokens & is_first[..., None], -jnp.inf, logits)


@flax.struct.dataclass
class Temperature(OfNumber):
    """Divides the logits, relative to the likeliest, which stays finite at any temperature."""

    temperature: Leaf

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """Scales the logits."""
        most = logits.max(axis=-1, keepdims=True)
        return (logits - jnp.where(most == -jnp.inf, 0.0, most)) / self.temperature


@flax.struct.dataclass
class TopK(OfSize):
    """Samples from the k likeliest tokens."""

    k: int = flax.struct.field(pytree_node=False)

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `backends.selection.restrict_to_top_k`."""
        return selection.restrict_to_top_k(logits, self.k)


@flax.struct.dataclass
class TopP(OfNumber):
    """Samples from the fewest likeliest tokens whose probabilities sum to p."""

    p: Leaf

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `backends.selection.restrict_to_top_p`."""
        return selection.restrict_to_top_p(logits, self.p)


@flax.struct.dataclass
class MinP(OfNumber):
    """Samples from the tokens at least p times as likely as the likeliest."""

    p: Leaf

    def __call__(self, logits: Array, context: LogitsContext) -> Array:
        """See `logits.truncate_min_p`."""
        return functions.truncate_min_p(logits, self.p)


def float32(value: float, lowest: float, highest: float) -> Float[np.ndarray, ""]:
    """Within bounds at which no product or quotient of logits overflows into NaN."""
    return np.asarray(min(max(value, lowest), highest), np.float32)


def _documents(
    logits: Float[Array, "B P R V"], context: LogitsContext
) -> tuple[Int[Array, "B P R S"], Bool[Array, "B P R S"]]:
    """Each row's document."""
    documents, mask = jnp.asarray(context.documents), jnp.asarray(context.document_mask)
    shape = (*logits.shape[:3], documents.shape[1])
    return (
        jnp.broadcast_to(documents[:, None, None], shape),
        jnp.broadcast_to(mask[:, None, None], shape),
    )


def _marked(name: str, tokens: Sequence[int], vocab_size: int) -> Bool[np.ndarray, " V"]:
    _check_ids(name, tokens, vocab_size)
    marks = np.zeros(vocab_size, bool)
    marks[list(tokens)] = True
    return marks


def _check_ids(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise UserError(
                f"{name} has the token id {token}, but ids go from 0 to {vocab_size - 1}"
            )

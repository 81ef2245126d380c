"""Outputs that match a regular expression or a JSON schema: what users write, and its automaton.

The text of an output, as `Generation.text` returns it, matches the pattern from its first to its
last character. See docs/outputs_that_match_a_pattern.md.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pid_jax.data.detokenizing import Detokenizer
from pid_jax.decoding.json_schemas import regex_of_schema
from pid_jax.decoding.regular_expressions import byte_automaton
from pid_jax.decoding.stop_sequences import TokenBytes, token_bytes
from pid_jax.decoding.token_automata import (
    PatternAutomaton,
    TokenAutomaton,
    joined,
    over_tokens,
)
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, control_token_ids, end_token_ids


@dataclass(frozen=True)
class Regex:
    """Outputs that a regular expression matches, as a whole.

    The syntax is that of Rust's regex crate. Raises `UserError` for a pattern that is malformed
    or needs more than a finite automaton, and where `outlines-core` is not installed.
    """

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise UserError(f"Regex({self.pattern!r}): a pattern is a string")
        byte_automaton(self.pattern)

    @property
    def regex(self) -> str:
        """The regular expression that outputs match."""
        return self.pattern


@dataclass(frozen=True)
class JsonSchema:
    """Outputs that are JSON and satisfy a schema.

    Raises `UserError` for a schema that is malformed or has keywords that cannot be enforced
    (see `json_schemas`), and where `outlines-core` is not installed.
    """

    schema: Mapping[str, Any] | str
    """As a mapping or as JSON text. The text is what remains: it is hashable."""

    def __post_init__(self) -> None:
        schema: Any = self.schema
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(schema, ensure_ascii=False)
        except (ValueError, TypeError) as error:
            raise UserError(f"JsonSchema: the schema is no JSON: {error}") from None
        object.__setattr__(self, "schema", text)
        try:
            regex = self.regex
        except TypeError as error:  # a list or an object where a name belongs
            raise UserError(f"JsonSchema: the schema is malformed: {error}") from error
        byte_automaton(regex)

    @functools.cached_property
    def regex(self) -> str:
        """The regular expression that outputs match."""
        return regex_of_schema(json.loads(str(self.schema)))


Pattern = Regex | JsonSchema


def compile_patterns(
    patterns: Sequence[Pattern], tokenizer: Any, config: Config
) -> tuple[TokenAutomaton, list[int]]:
    """One automaton for all patterns, as NumPy arrays, and the start state of each.

    Equal patterns share states. The 32 latest automata of a pattern and a tokenizer are cached.
    The tokens of `end_token_ids(config)` are allowed exactly where the text is a whole match.
    Never allowed are control tokens, ids beyond the tokenizer, and tokens that the tokenizer
    marks as special, such as T5's sentinels, unless the pattern names their text. Raises
    `UserError` without a tokenizer, and for a pattern that no sequence of its tokens matches.
    """
    if tokenizer is None:
        raise UserError(
            "regular expressions and JSON schemas as allowed outputs need a tokenizer, and the "
            "model has none: give lists of token ids instead"
        )
    vocabulary = _Vocabulary(
        tokenizer,
        len(tokenizer),
        config.vocab_size,
        control_token_ids(config),
        end_token_ids(config),
    )
    distinct = dict.fromkeys(patterns)
    compiled = [_compiled(pattern, vocabulary) for pattern in distinct]
    automaton, starts = joined(compiled, config.vocab_size)
    start_of = dict(zip(distinct, starts, strict=True))
    return automaton, [start_of[pattern] for pattern in patterns]


@dataclass(frozen=True)
class _Vocabulary:
    """What an automaton over tokens depends on besides the pattern."""

    tokenizer: Any
    tokenizer_size: int
    """Users may add tokens at any time."""
    vocab_size: int
    control_token_ids: frozenset[int]
    end_token_ids: tuple[int, ...]


@functools.lru_cache(maxsize=32)
def _compiled(pattern: Pattern, vocabulary: _Vocabulary) -> PatternAutomaton:
    tokens, is_text, special = _texts(vocabulary)
    literal = pattern.regex.replace("\\", "")
    is_text = is_text.copy()
    for token, name in special.items():
        is_text[token] &= name in literal
    automaton = over_tokens(
        byte_automaton(pattern.regex), tokens, is_text, vocabulary.end_token_ids
    )
    if automaton is None:
        spelled = set(b"".join(tokens.following).decode(errors="ignore"))
        example = byte_automaton(pattern.regex).shortest_text().decode()
        missing = sorted(set(example) - spelled)
        because = f", for example without {', '.join(map(repr, missing))}" if missing else ""
        raise UserError(
            f"{pattern} matches no text that the tokens of this "
            f"{type(vocabulary.tokenizer).__name__} can spell{because}: change the pattern or "
            "train a model whose tokenizer has these characters"
        )
    return automaton


@functools.lru_cache(maxsize=4)
def _texts(vocabulary: _Vocabulary) -> tuple[TokenBytes, np.ndarray, dict[int, str]]:
    """The bytes of the tokens, which of them are text, and the names of those that are special."""
    detokenizer = Detokenizer(vocabulary.tokenizer, vocabulary.control_token_ids)
    try:
        tokens = token_bytes(detokenizer, vocabulary.vocab_size)
    except UserError:
        raise UserError(
            f"cannot tell which bytes the tokens of this {type(vocabulary.tokenizer).__name__} "
            "stand for, so no regular expression or JSON schema can be followed: give a list of "
            "allowed outputs instead"
        ) from None
    ids = np.arange(vocabulary.vocab_size)
    is_text = (ids < vocabulary.tokenizer_size) & ~np.isin(ids, list(detokenizer.control))
    added = getattr(vocabulary.tokenizer, "added_tokens_decoder", {})
    special = {
        token: str(about.content).strip()
        for token, about in added.items()
        if about.special and token < vocabulary.vocab_size
    }
    return tokens, is_text, special

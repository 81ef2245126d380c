"""Regular expressions as deterministic automata over the bytes of UTF-8 text.

`outlines-core` compiles them, with the syntax of Rust's regex crate. Its index of a vocabulary is
a table of transitions. With the 256 single bytes as the vocabulary, that table is the automaton
itself, which `token_automata` composes with the tokens of a model.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.decoding.transitions import MOST_CELLS, NEVER, check_size, distances
from pid_jax.errors import UserError

DEAD = 0
"""The state from which no text matches."""
_ANY_BYTE = range(256)
_END_OF_TEXT = 256
_SYNTAX = (
    "the syntax is that of Rust's regex crate, without look-around, backreferences, word "
    "boundaries such as \\b, and \\Z"
)
_BEFORE_AN_ANCHOR = re.compile(r"(\(\?[A-Za-z]+\))?(\^|\\A)")


class ByteAutomaton(NamedTuple):
    """Accepts the texts that a regular expression matches from the first to the last byte."""

    next_state: Int[np.ndarray, "states 256"]
    """int32. From every state but `DEAD` some text leads to an accepting state."""
    accepting: Bool[np.ndarray, " states"]
    start: int

    def shortest_text(self) -> bytes:
        """One of the shortest texts that it accepts, in bytes."""
        source, symbol = np.nonzero(self.next_state)
        ends, states = np.flatnonzero(self.accepting), len(self.accepting)
        steps = distances(self.next_state[source, symbol], source, ends, states)
        state, text = self.start, []
        while steps[state]:
            reached = self.next_state[state]
            text.append(int(np.argmin(np.where(reached == DEAD, NEVER, steps[reached]))))
            state = reached[text[-1]]
        return bytes(text)

    def bytes_used(self) -> list[int]:
        """The bytes that occur in any text that it accepts."""
        source, symbol = np.nonzero(self.next_state)
        targets = self.next_state[source, symbol]
        reached = distances(source, targets, np.array([self.start]), len(self.accepting)) < NEVER
        used: list[int] = np.unique(symbol[reached[source]]).tolist()
        return used


@functools.lru_cache(maxsize=64)
def byte_automaton(pattern: str) -> ByteAutomaton:
    """The automaton of a regular expression. The 64 latest are cached.

    `^` and `$` are implied. They may stand at the two ends of the pattern and nowhere else.
    Raises `UserError` for a pattern that is malformed, that needs more than a finite automaton,
    or that no text matches, and where `outlines-core` is not installed.
    """
    body = without_anchors(pattern)
    core = _library()
    vocabulary = core.Vocabulary(_END_OF_TEXT, {bytes([byte]): [byte] for byte in _ANY_BYTE})
    try:
        # The library looks for a prefix that matches and drops alternatives behind the first
        # that does. \z lets only whole texts match. The library refuses assertions at the start
        # of a pattern, and \z is one where the empty text matches, so that a newline precedes.
        index = core.Index(rf"\n(?:{body})\z", vocabulary)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{pattern!r}: {_reason(pattern, str(error))}") from None
    transitions: dict[int, dict[int, int]] = index.get_transitions()
    start = transitions.get(index.get_initial_state(), {}).get(ord("\n"))
    states = [state for state in transitions if state != index.get_initial_state()]
    number = {state: DEAD + 1 + i for i, state in enumerate(states)}
    check_size(256 * len(number), MOST_CELLS // 4)
    table = np.full((len(number) + 1, 256), DEAD, np.int32)
    for state in states:
        for symbol, target in transitions[state].items():
            if symbol != _END_OF_TEXT:
                table[number[state], symbol] = number[target]
    accepting = np.zeros(len(table), bool)
    accepting[[number[state] for state in index.get_final_states() if state in number]] = True
    source, column = np.nonzero(table)
    live = distances(table[source, column], source, np.flatnonzero(accepting), len(table)) < NEVER
    if start is None or not live[number[start]]:
        raise UserError(f"{pattern!r} matches no text: remove what contradicts itself")
    return ByteAutomaton(np.where(live[table], table, DEAD), accepting, number[start])


def without_anchors(pattern: str) -> str:
    """The pattern without `^` in front and `$` at the end, which a match of all text implies.

    Raises `UserError` for an anchor elsewhere and for a parenthesis that closes none.
    """
    if front := _BEFORE_AN_ANCHOR.match(pattern):
        pattern = pattern[: front.start(2)] + pattern[front.end(2) :]
    syntax = list(_outside_classes(pattern))
    if syntax and syntax[-1] in ("$", r"\z"):
        pattern = pattern.removesuffix(syntax.pop())
    depth = 0
    for token in syntax:
        if token in ("^", "$", r"\A", r"\z"):
            raise UserError(
                f"{pattern!r}: {token} may stand only at the ends of a pattern. The whole output "
                "has to match in any case: remove it"
            )
        depth += (token == "(") - (token == ")")
        if depth < 0:
            raise UserError(f"{pattern!r}: a parenthesis is closed that was not opened")
    return pattern


def escaped(text: str) -> str:
    """A pattern that matches this text alone."""
    return re.sub(r"[\\.+*?()|\[\]{}^$#&\-~]", r"\\\g<0>", text)


def _outside_classes(pattern: str) -> Iterator[str]:
    """The characters and escapes of a pattern that stand outside of [...]."""
    depth, i = 0, 0
    while i < len(pattern):
        token = pattern[i : i + 2] if pattern[i] == "\\" else pattern[i]
        i += len(token)
        if depth == 0 and token != "[":
            yield token
        elif token == "[":
            depth += 1
            # A bracket right behind [ or [^ is a character of the class.
            i += pattern[i : i + 1] == "^"
            i += pattern[i : i + 1] == "]"
        elif token == "]":
            depth -= 1


def _reason(pattern: str, message: str) -> str:
    if "no transitions" in message:
        return "a part of it matches no text: remove that part"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"{error} ({_SYNTAX})"
    detail = message.partition("unsupported regex feature for DFAs: ")[2].partition(";")[0]
    return f"no automaton can be built ({detail + '; ' if detail else ''}{_SYNTAX})"


def _library() -> Any:
    try:
        import outlines_core
    except ImportError:
        raise UserError(
            "regular expressions and JSON schemas as allowed outputs need outlines-core: "
            "pip install 'pid_jax[patterns]'"
        ) from None
    return outlines_core

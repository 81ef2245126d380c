"""Stop sequences: an output ends as soon as its text, or its tokens, contain one of these.

A stop string rarely coincides with tokens: it may start inside one and end inside another, and
many token sequences spell it. Strings are searched in the bytes of the text, by the automaton of
Aho and Corasick ("Efficient string matching", CACM 18(6), 1975), which is then composed with
the vocabulary: for every state and token, the state after all of the token's bytes. Inside the
decoding loop one table lookup per token remains, and no output is decoded to look for strings.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from pid_jax.data.batching import Arr, bucket
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.errors import UserError

START = 0
"""The state before an output's first token."""


class StopAutomaton(NamedTuple):
    """What has been seen of the stop sequences, as one integer per output."""

    next_state: Int[Arr, "states V"]
    """int32. The last state is that of a completed stop sequence; no token leaves it."""

    def after(self, state: Int[Array, "*rows"], token: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The states after these tokens."""
        return jnp.asarray(self.next_state)[state, token]

    def stopped(self, state: Int[Array, "*rows"]) -> Bool[Array, "*rows"]:
        """Where a stop sequence is complete."""
        return state == self.next_state.shape[0] - 1


class TokenBytes(NamedTuple):
    """The UTF-8 bytes that each token id adds to the decoded text; none for control tokens."""

    first: list[bytes]
    """At the start of the text, where many tokenizers drop a leading space."""
    following: list[bytes]
    """Anywhere else."""
    restarted: list[bytes]
    """After a token of `restarts`."""
    restarts: Bool[np.ndarray, " V"]
    """The tokens after which text is encoded as at the start (see `detokenizing.Joint`)."""

    def joined(self, tokens: Sequence[int]) -> bytes:
        """The bytes of a text of these tokens."""
        parts, add = [], self.first
        for token in tokens:
            parts.append(add[token])
            if self.restarts[token]:
                add = self.restarted
            elif self.following[token]:
                add = self.following
        return b"".join(parts)


def compile_stops(
    stops: Sequence[str | Sequence[int]], tokens: TokenBytes | None, vocab_size: int
) -> StopAutomaton:
    """The automaton, as a NumPy array, that stops at the first completed of these sequences.

    stops: strings, which may occur anywhere in the text, and lists of token ids, which occur as
    consecutive tokens. tokens: from `token_bytes`, or None if all stops are token ids. Raises
    `UserError` for an empty stop, a token id outside the vocabulary, or a string without `tokens`.
    """
    strings: list[Sequence[int]] = []
    sequences: list[Sequence[int]] = []
    for i, stop in enumerate(stops):
        if not len(stop):
            raise UserError(f"stop[{i}] is empty, and would stop before the first token: remove it")
        if not isinstance(stop, str):
            for token in stop:
                if not 0 <= token < vocab_size:
                    raise UserError(
                        f"stop[{i}] has the token id {token}, but ids go from 0 to {vocab_size - 1}"
                    )
            sequences.append(stop)
        elif tokens is None:
            raise UserError(
                f"stop[{i}] is text, but the model has no tokenizer: give it as token ids"
            )
        else:
            strings.append(stop.encode())
    text = _over_text(_search(strings, 256), tokens, vocab_size)
    return StopAutomaton(_either(text, _search(sequences, vocab_size)))


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string; all of it if there is none.

    The first stop is the one that is complete first, and of several with the same end the longest.
    The result does not depend on the length of the last token.
    """
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(ends)[1]] if ends else text


def contains(text: str, stops: Sequence[str]) -> bool:
    """Whether any of the stop strings occurs in the text."""
    return any(stop in text for stop in stops)


def partial_stop_length(output: Sequence[Any], stops: Sequence[Sequence[Any]]) -> int:
    """Length of the trailing partial stop sequence of an unfinished output, text or tokens."""
    prefixes = (stop[:size] for stop in stops for size in range(1, len(stop)))
    return max((len(some) for some in prefixes if output[-len(some) :] == some), default=0)


def token_bytes(detokenizer: Detokenizer, vocab_size: int) -> TokenBytes:
    """What each token id adds to the text that the detokenizer makes of an output.

    Its tokenizer decodes by byte-level BPE (GPT-2, BART), as SentencePiece (T5, Gemma; with byte
    fallback or without) or bytes themselves (ByT5). Ids beyond its vocabulary add nothing. The
    right reading is the one with which the whole vocabulary decodes. `UserError` if there is none.
    """
    tokenizer = detokenizer.tokenizer
    ids = range(min(vocab_size, len(tokenizer)))
    names = [
        None if id in detokenizer.control else tokenizer.convert_ids_to_tokens(id) for id in ids
    ]
    joints = {id: joint for id, joint in detokenizer.joints.items() if id < vocab_size}
    restarts = np.zeros(vocab_size, bool)
    restarts[[id for id, joint in joints.items() if joint.restarts]] = True
    for read in _READINGS:
        plain = [b"" if name is None else read(name) for name in names]
        plain += [b""] * (vocab_size - len(ids))
        following = [
            b" " * (id in joints and joints[id].spaced) + text for id, text in enumerate(plain)
        ]
        # Bytes that are only part of a character have no text of their own to compare.
        whole = [id for id in ids if names[id] is not None and _is_text(following[id])]
        by_spaces = sorted(whole, key=lambda id: following[id].count(b" "), reverse=True)
        for drop in _DROPPED_AT_THE_START:
            first = list(map(drop, plain))
            restarted = [following[id] if id in joints else text for id, text in enumerate(first)]
            tokens = TokenBytes(first, following, restarted, restarts)
            if all(
                detokenizer.text(sequence).encode() == tokens.joined(sequence)
                for sequence in (whole, *([id, id] for id in by_spaces[:64]))
            ):
                return tokens
    raise UserError(
        f"cannot tell which bytes the tokens of this {type(tokenizer).__name__} stand for: "
        "give stop sequences as token ids"
    )


def _search(patterns: Sequence[Sequence[int]], alphabet: int) -> Int[np.ndarray, "states alphabet"]:
    """The transitions of an automaton that looks for any of the patterns.

    State 0 is the start. The last state means that a pattern is complete, and leads to itself.
    """
    children: list[dict[int, int]] = [{}]
    complete = [False]
    for pattern in patterns:
        node = 0
        for symbol in pattern:
            if symbol not in children[node]:
                children[node][symbol] = len(children)
                children.append({})
                complete.append(False)
            node = children[node][symbol]
        complete[node] = True

    # Breadth first, so that a node's longest proper suffix in the trie is done before it.
    table = np.zeros((len(children) + 1, alphabet), np.int32)
    suffix = [0] * len(children)
    order = [0]
    for node in order:
        table[node] = table[suffix[node]]
        complete[node] = complete[node] or complete[suffix[node]]
        for symbol, child in children[node].items():
            suffix[child] = int(table[suffix[node], symbol]) if node else 0
            table[node, symbol] = child
            order.append(child)
    stopped = len(children)
    table[stopped] = stopped
    table[np.append(complete, False)[table]] = stopped
    return table


def _over_text(
    search: Int[np.ndarray, "states 256"], tokens: TokenBytes | None, vocab_size: int
) -> Int[np.ndarray, "states1 V"]:
    """The byte automaton's steps over whole tokens, with one more state, 0: no text so far.

    Where text may restart after a token, each state exists twice: after such a token, and after
    any other.
    """
    if tokens is None:
        nothing = [b""] * vocab_size
        tokens = TokenBytes(nothing, nothing, nothing, np.zeros(vocab_size, bool))
    silent = np.array([not text for text in tokens.following])
    if not tokens.restarts.any():
        first = np.where(silent, 0, 1 + _run(search[:1], search, tokens.first))
        return np.concatenate([first, 1 + _run(search, search, tokens.following)])
    size = len(search)

    def numbered(states: Int[np.ndarray, "some V"]) -> Int[np.ndarray, "some V"]:
        """States after a restarting token come first, so that the last state remains the last."""
        anew = tokens.restarts & (states < size - 1)
        return np.where(anew, 1 + states, 1 + size + states).astype(np.int32)

    first = np.where(silent, 0, numbered(_run(search[:1], search, tokens.first)))
    stay = 1 + np.arange(size, dtype=np.int32)[:, None]
    restarted = np.where(silent, stay, numbered(_run(search, search, tokens.restarted)))
    following = numbered(_run(search, search, tokens.following))
    return np.concatenate([first.astype(np.int32), restarted, following])


def _run(
    states: Int[np.ndarray, "some 256"],
    search: Int[np.ndarray, "states 256"],
    texts: Sequence[bytes],
) -> Int[np.ndarray, "some V"]:
    """From each of the first states of `search`, the state after each of the texts."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    starts = np.cumsum(lengths) - lengths
    symbols = np.frombuffer(b"".join(texts), np.uint8)
    longest_first = np.argsort(-lengths, kind="stable")
    reached = np.repeat(np.arange(len(states), dtype=np.int32)[:, None], len(texts), axis=1)
    for i in range(lengths.max(initial=0)):
        going_on = longest_first[: np.count_nonzero(lengths > i)]
        here = reached[:, : len(going_on)]
        here[:] = search[here, symbols[starts[going_on] + i]]
    result = np.empty_like(reached)
    result[:, longest_first] = reached
    return result


def _either(
    one: Int[np.ndarray, "states V"], other: Int[np.ndarray, "more_states V"]
) -> Int[np.ndarray, "reached_states V"]:
    """Both automata at once, stopped as soon as one is: the pairs of states that can occur."""
    stopped = len(one) * len(other)
    known = np.zeros(stopped + 1, bool)
    known[[START, stopped]] = True
    pairs, rows = [START], []
    for pair in pairs:
        after_one, after_other = one[pair // len(other)], other[pair % len(other)]
        row = after_one.astype(np.int64) * len(other) + after_other
        row[(after_one == len(one) - 1) | (after_other == len(other) - 1)] = stopped
        rows.append(row)
        reached = np.zeros(stopped + 1, bool)
        reached[row] = True
        pairs.extend(np.flatnonzero(reached & ~known).tolist())
        known |= reached
    # So that other stops make the same shape, and no new compilation.
    states = bucket(len(pairs) + 1, multiple=8)
    number = np.full(stopped + 1, states - 1, np.int32)
    number[pairs] = np.arange(len(pairs), dtype=np.int32)
    table = np.full((states, one.shape[1]), states - 1, np.int32)
    for state, row in enumerate(rows):
        table[state] = number[row]
    return table


def _byte_level(token: str) -> bytes:
    """GPT-2's alphabet: every byte is a printable character; other tokens are plain text."""
    if all(character in _BYTE_OF_CHARACTER for character in token):
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()


def _gpt2_alphabet() -> Iterator[tuple[str, int]]:
    """Bytes that are printable in Latin-1 are themselves, the others U+0100 and up in order."""
    others = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or (byte >= 0xA1 and byte != 0xAD):
            yield chr(byte), byte
        else:
            yield chr(0x100 + others), byte
            others += 1


_BYTE_OF_CHARACTER = dict(_gpt2_alphabet())
_BYTE_FALLBACK = re.compile("<0x([0-9A-F]{2})>")


def _sentencepiece(token: str) -> bytes:
    return token.replace("▁", " ").encode()


def _sentencepiece_with_byte_fallback(token: str) -> bytes:
    byte = _BYTE_FALLBACK.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else _sentencepiece(token)


def _bytes_themselves(token: str) -> bytes:
    """ByT5's tokens: the characters U+0000 to U+00FF for the bytes, and whole added tokens."""
    return token.encode("latin-1") if len(token) == 1 and ord(token) < 256 else token.encode()


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


_READINGS: tuple[Callable[[str], bytes], ...] = (
    _sentencepiece_with_byte_fallback,
    _sentencepiece,
    _byte_level,
    _bytes_themselves,
)
_DROPPED_AT_THE_START: tuple[Callable[[bytes], bytes], ...] = (
    lambda text: text,
    lambda text: text.removeprefix(b" "),
    lambda text: text.replace(b" ", b""),
)
"""What decoders make of the first token: T5's drops every space in it, Llama's the first."""

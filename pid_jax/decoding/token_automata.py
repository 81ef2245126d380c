"""Automata over tokens: which tokens may come next in an output that has to match a pattern.

Willard and Louf ("Efficient guided generation for large language models", arXiv 2307.09702,
section 3) run a regular expression's automaton over every token of the vocabulary ahead of time.
Here tokens that lead from every state to the same states form one class, as in a lexer's table,
so that the table has one column per class instead of one per token. A row's whole state is one
integer, and the decoding loop reads it with gathers alone.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from pid_jax.data.batching import Arr, power_of_two
from pid_jax.decoding.allowed_outputs import DEAD_END, UNCONSTRAINED
from pid_jax.decoding.regular_expressions import ByteAutomaton
from pid_jax.decoding.stop_sequences import TokenBytes
from pid_jax.decoding.transitions import NEVER, check_size, distances, neighbours

NO_TEXT = 0
"""The class of tokens that no pattern allows anywhere."""
END = 1
"""The class of the tokens that end an output."""
_OTHER_CLASSES = 2


class TokenAutomaton(NamedTuple):
    """The automata of several patterns in one table, as a pytree of arrays.

    Sizes are rounded up to powers of two: other patterns of about the same size make the same
    shapes, and no new compilation.
    """

    token_class: Int[Arr, " V"]
    """int32. Tokens of one class lead from every state to the same state."""
    next_state: Int[Arr, "states classes"]
    """int32. `UNCONSTRAINED` leads to itself, and what is not allowed to `DEAD_END`."""
    accepting: Bool[Arr, " states"]
    """Where the text is a whole match, so that the output may end."""
    fewest_tokens: Int[Arr, " states"]
    """int32. The fewest further tokens, the end token not counted, with which the text is a
    whole match; `NEVER` where there are none."""


class PatternAutomaton(NamedTuple):
    """The automaton of one pattern: its states are numbered from 0, the start."""

    token_class: Int[np.ndarray, " V"]
    next_state: Int[np.ndarray, "states classes"]
    """-1 where a token is not allowed."""
    accepting: Bool[np.ndarray, " states"]
    fewest_tokens: Int[np.ndarray, " states"]


def allowed(
    automaton: TokenAutomaton,
    state: Int[Array, "*rows"],
    tokens_left: Int[Array, "*#rows"] | int | None = None,
) -> Bool[Array, "*rows V"]:
    """Which tokens may come next in these states.

    tokens_left: the number of tokens, that which comes next included, that an output may still
    have. Tokens behind which a match would take more are not allowed. Where the start is no
    further from a match than that, some token is allowed until the text is a whole match. With 0
    only the end tokens may come, which is for models that force an end token at the last position.
    None: no limit.
    """
    token_class, next_state, accepting, fewest = map(jnp.asarray, automaton)
    limit = jnp.asarray(NEVER if tokens_left is None else tokens_left)[..., None]
    by_class = fewest[next_state[state]] < limit
    by_class = jnp.where(
        jnp.arange(next_state.shape[1]) == END, accepting[state][..., None], by_class
    )
    by_class = by_class | (state == UNCONSTRAINED)[..., None]
    return jnp.take(by_class, token_class, axis=-1, mode="clip")


def after(
    automaton: TokenAutomaton, state: Int[Array, "*rows"], token: Int[Array, "*rows"]
) -> Int[Array, "*rows"]:
    """The states that these tokens lead to. End tokens lead to `DEAD_END`."""
    token_class, next_state, *_ = map(jnp.asarray, automaton)
    return next_state[state, token_class[token]]


def shortest(automaton: TokenAutomaton, start: int) -> int:
    """The fewest tokens of an output that matches, the end token not counted."""
    return int(automaton.fewest_tokens[start])


def joined(
    automata: Sequence[PatternAutomaton], vocab_size: int
) -> tuple[TokenAutomaton, list[int]]:
    """One table for all of these automata, as NumPy arrays, and the start state of each."""
    token_class = np.full(vocab_size, NO_TEXT, np.int64)
    for automaton in automata:
        pairs = token_class * automaton.next_state.shape[1] + automaton.token_class
        token_class = np.unique(pairs, return_inverse=True)[1]
    is_text = np.zeros(vocab_size, bool)
    is_end = np.zeros(vocab_size, bool)
    for automaton in automata:
        is_text |= automaton.token_class >= _OTHER_CLASSES
        is_end |= automaton.token_class == END
    _, first, of_text = np.unique(token_class[is_text], return_index=True, return_inverse=True)
    token_class[:] = NO_TEXT
    token_class[is_end] = END
    token_class[is_text] = _OTHER_CLASSES + of_text
    example = np.flatnonzero(is_text)[first]

    starts, states = [], DEAD_END + 1
    for automaton in automata:
        starts.append(states)
        states += len(automaton.accepting)
    shape = (
        power_of_two(states, at_least=64),
        power_of_two(_OTHER_CLASSES + len(example), at_least=64),
    )
    check_size(shape[0] * shape[1])
    next_state = np.full(shape, DEAD_END, np.int32)
    next_state[UNCONSTRAINED] = UNCONSTRAINED
    accepting = np.zeros(shape[0], bool)
    accepting[UNCONSTRAINED] = True
    fewest = np.full(shape[0], NEVER, np.int32)
    fewest[UNCONSTRAINED] = 0
    for start, automaton in zip(starts, automata, strict=True):
        rows = slice(start, start + len(automaton.accepting))
        targets = automaton.next_state[:, automaton.token_class[example]]
        columns = slice(_OTHER_CLASSES, _OTHER_CLASSES + len(example))
        next_state[rows, columns] = np.where(targets < 0, DEAD_END, start + targets)
        accepting[rows] = automaton.accepting
        fewest[rows] = automaton.fewest_tokens
    return TokenAutomaton(token_class.astype(np.int32), next_state, accepting, fewest), starts


def over_tokens(
    text: ByteAutomaton,
    tokens: TokenBytes,
    is_text: Bool[np.ndarray, " V"],
    end_token_ids: Sequence[int],
) -> PatternAutomaton | None:
    """The automaton of the outputs whose text the byte automaton accepts.

    tokens: what each token adds to the text, which differs at its start and after some added
    tokens. is_text: the tokens that may be part of an output. None if no output matches.
    """
    usable = np.flatnonzero(is_text & np.array([bool(part) for part in tokens.following]))
    # Bytes that the automaton does not tell apart are one symbol, and texts of the same symbols
    # are one text.
    table, symbols = np.unique(text.next_state, axis=1, return_inverse=True)
    as_symbols = symbols.reshape(-1).astype(np.uint8).tobytes()
    states = len(table)
    modes = [
        (tokens.first, 0, np.array([text.start])),
        (tokens.following, 1, np.arange(states)),
        (tokens.restarted, 1 + states, np.arange(states)),
    ]
    modes = modes if tokens.restarts[usable].any() else modes[:2]

    walks, columns = [], []
    for texts, _, origins in modes:
        distinct: dict[bytes, int] = {}
        read = (texts[token].translate(as_symbols) for token in usable)
        number = np.array([distinct.setdefault(part, len(distinct)) for part in read], np.int64)
        targets, column_of_text = _walk(table, origins, list(distinct))
        walks.append(targets)
        columns.append(column_of_text[number])
    columns.append(tokens.restarts[usable].astype(np.int64))
    kinds, kind_of_token = np.unique(np.array(columns), axis=1, return_inverse=True)

    # The states of outputs: the start, then the byte automaton's after any token and, once more,
    # after one that restarts the text.
    edges = []
    for (_, first_state, _), targets, column in zip(modes, walks, kinds, strict=False):
        check_size(targets.shape[0] * len(column))
        origin, kind = np.nonzero(targets[:, column])
        target = 1 + targets[origin, column[kind]] + states * kinds[-1, kind]
        edges.append((first_state + origin, kind, target))
    source, kind, target = map(np.concatenate, zip(*edges, strict=True))
    accepting = np.concatenate([text.accepting[[text.start]], text.accepting, text.accepting])

    pairs = np.unique(source * len(accepting) + target)
    one, other = pairs // len(accepting), pairs % len(accepting)
    reached = distances(one, other, np.array([0]), len(accepting)) < NEVER
    fewest = distances(other, one, np.flatnonzero(accepting), len(accepting))
    useful = reached & (fewest < NEVER)
    if not useful[0]:
        return None
    number = np.cumsum(useful) - 1
    on_a_match = useful[source] & useful[target]
    source, target = number[source[on_a_match]], number[target[on_a_match]]
    # Number 0 is that of kinds without edges, NO_TEXT. END has no kind.
    of_edges = _classes(kind[on_a_match], source, target, kinds.shape[1])
    class_of_kind = np.where(of_edges, of_edges + END, NO_TEXT)
    classes = int(class_of_kind.max(initial=END)) + 1
    next_state = np.full((useful.sum(), classes), -1, np.int32)
    next_state[source, class_of_kind[kind[on_a_match]]] = target
    token_class = np.full(len(is_text), NO_TEXT, np.int32)
    token_class[usable] = class_of_kind[kind_of_token.reshape(-1)]
    token_class[list(end_token_ids)] = END
    return PatternAutomaton(token_class, next_state, accepting[useful], fewest[useful])


def _walk(
    table: Int[np.ndarray, "states symbols"],
    origins: Int[np.ndarray, " origins"],
    texts: Sequence[bytes],
) -> tuple[Int[np.ndarray, "origins columns"], Int[np.ndarray, " texts"]]:
    """The states that texts lead to, one column for all texts that lead to the same, and the
    column of each text.

    texts: strings of symbols. One round per symbol, for all origins and texts that are still
    alive, so that common prefixes of texts are walked once.
    """
    levels = list(_levels(texts))
    empty = [i for i, text in enumerate(texts) if not text]
    parts, column_of_text, cells = [], np.zeros(len(texts), np.int64), 0
    for some in np.array_split(origins, -(-len(origins) * len(texts) // (1 << 22)) or 1):
        # Texts first, so that those of a text are neighbours in memory.
        reached = np.zeros((len(texts), len(some)), np.int32)
        reached[empty] = some
        origin, node, state = np.arange(len(some)), np.zeros(len(some), np.int64), some
        for first_child, symbol, text in levels:
            index, child = neighbours(first_child, node)
            target = table[state[index], symbol[child]]
            alive = np.flatnonzero(target)
            origin, node, state = origin[index[alive]], child[alive], target[alive]
            ended = np.flatnonzero(text[node] >= 0)
            reached[text[node[ended]], origin[ended]] = state[ended]
        column, first = _numbered(row.tobytes() for row in reached)
        parts.append((column, reached[first]))
        cells += reached[first].size
        check_size(cells)
        column_of_text = np.unique(column_of_text * len(first) + column, return_inverse=True)[1]
    example = np.unique(column_of_text, return_index=True)[1]
    check_size(len(origins) * len(example))
    return np.concatenate([part[column[example]].T for column, part in parts]), column_of_text


def _levels(
    texts: Sequence[bytes],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The prefix tree of distinct texts, one level per symbol.

    For each level the first child of every node of the level before, and of its own nodes the
    symbols and the texts that end there, -1 for none.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    starts = np.cumsum(lengths) - lengths
    symbols = np.frombuffer(b"".join(texts), np.uint8)
    rows, node, nodes = np.arange(len(texts)), np.zeros(len(texts), np.int64), 1
    for depth in range(lengths.max(initial=0)):
        longer = lengths[rows] > depth
        rows, node = rows[longer], node[longer]
        key = node * 256 + symbols[starts[rows] + depth]
        children, node = np.unique(key, return_inverse=True)
        text = np.full(len(children), -1)
        ended = lengths[rows] == depth + 1
        text[node[ended]] = rows[ended]
        yield np.searchsorted(children // 256, np.arange(nodes + 1)), children % 256, text
        nodes = len(children)


def _classes(
    kind: Int[np.ndarray, " edges"],
    source: Int[np.ndarray, " edges"],
    target: Int[np.ndarray, " edges"],
    kinds: int,
) -> Int[np.ndarray, " kinds"]:
    """The same number for kinds of tokens with the same edges, 0 for those without."""
    order = np.lexsort((source, kind))
    edges = np.stack([source[order], target[order]], axis=1).astype(np.int32)
    first = np.searchsorted(kind[order], np.arange(kinds + 1))
    own = (edges[one:other].tobytes() for one, other in itertools.pairwise(first.tolist()))
    return _numbered(itertools.chain([b""], own))[0][1:]


def _numbered(
    values: Iterable[bytes],
) -> tuple[Int[np.ndarray, " values"], Int[np.ndarray, " distinct"]]:
    """Numbers, the same for equal values, and the index of the first value of each number."""
    numbers: dict[bytes, int] = {}
    number = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
    return number, np.unique(number, return_index=True)[1]

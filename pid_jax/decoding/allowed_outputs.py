"""Allowed outputs: closed lists of strings, each list a prefix tree over tokens.

Generating along a prefix tree of the allowed outputs, every other token at minus infinity, is
how GENRE names entities (De Cao et al., "Autoregressive Entity Retrieval", arXiv 2010.00904,
section 3.2). Trees of pointers are walked by the host, row by row. Here, as in STATIC (Su et
al., "Vectorizing the Trie", arXiv 2602.22647), the trees of all lists lie flattened in one
compressed sparse row layout: the edges of a node are neighbours in an array, ordered by token,
so one gather of fixed width reads the edges of every row's node on the device, inside the
decoding loop. A row's whole state is one integer, its node.

Nothing here is of size nodes x vocabulary. Unlike STATIC no node has a dense mask either: with
an output of this size, a scatter of the allowed tokens costs less than reading the logits.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pid_jax.data.batching import Arr, power_of_two
from pid_jax.decoding.logits import unless_all_barred
from pid_jax.errors import UserError

UNCONSTRAINED = 0
"""The node at which every token is allowed, and which every token leads back to."""
DEAD_END = 1
"""The node at which nothing is allowed: behind the end token, or off every path."""
_VERY_UNLIKELY = -1e30
"""A logit below any that a model gives, of which thousands can be added up."""


class PrefixForest(NamedTuple):
    """Prefix trees in compressed sparse row layout, as int32 arrays.

    Sizes are rounded up to powers of two: other lists of about the same size make the same
    shapes, and no new compilation.
    """

    first_edge: Int[Arr, " nodes1"]
    """The edges of node n are those from `first_edge[n]` to `first_edge[n + 1]`, exclusive."""
    edge_tokens: Int[Arr, " edges"]
    """Ascending among the edges of a node. The padding at the end is at least `width` long."""
    edge_targets: Int[Arr, " edges"]
    """The nodes that the edges lead to."""
    offsets: Int[Arr, " width"]
    """`arange(width)`: its length, the most edges of a node, has to be known to the compiler."""


def admissible(
    strings: Sequence[Sequence[int]],
    names: Sequence[object],
    where: str,
    *,
    end_token_ids: Sequence[int],
    min_new_tokens: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """The strings of one list that the length limits admit, each ending with the end token.

    strings: token ids, with or without the end token. end_token_ids: every token that ends an
    output; the first one is that which closes a string. names: the strings as the user gave
    them, and where: what the user calls the list, for messages. Left out are strings of fewer
    than min_new_tokens tokens, the end token not counted. Raises `UserError` for a string of
    more than max_new_tokens, the end token counted, for an end token inside a string, and if
    no string is left.
    """
    if not strings:
        raise UserError(
            f"{where} is an empty list, which admits no output: give at least one string, "
            "or None for no constraint"
        )
    admitted = []
    for string, name in zip(strings, names, strict=True):
        body = list(string[:-1] if string and string[-1] in end_token_ids else string)
        inside = next((token for token in body if token in end_token_ids), None)
        if inside is not None:
            raise UserError(
                f"{where}: {name!r} has the end token {inside} before its end, "
                "and an output ends there: remove it"
            )
        if len(body) >= max_new_tokens:
            raise UserError(
                f"{where}: {name!r} takes {len(body) + 1} tokens with the end token, but "
                f"max_new_tokens={max_new_tokens}: raise max_new_tokens or leave the string out"
            )
        if len(body) >= min_new_tokens:
            admitted.append([*body, end_token_ids[0] if len(body) == len(string) else string[-1]])
    if not admitted:
        longest = max(names, key=lambda name: len(strings[names.index(name)]))
        raise UserError(
            f"{where} admits no output: min_new_tokens={min_new_tokens}, but even {longest!r} "
            "has fewer tokens: lower min_new_tokens or add longer strings"
        )
    return admitted


def compile_forest(
    lists: Sequence[Sequence[Sequence[int]]],
) -> tuple[PrefixForest, list[int]]:
    """One forest for all lists, as NumPy arrays, and for each list the node to start from.

    Strings are token ids with the end token at the end and nowhere else (see `admissible`). Equal
    lists share a tree. Order and repetition within a list have no effect.
    """
    trees: dict[frozenset[tuple[int, ...]], int] = {}
    of_object: dict[int, int] = {}  # prompts often share a list object
    tree_of_list = []
    for strings in lists:
        if id(strings) not in of_object:
            content = frozenset(map(tuple, strings))
            of_object[id(strings)] = trees.setdefault(content, len(trees))
        tree_of_list.append(of_object[id(strings)])

    rows = list(chain.from_iterable(trees))
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    tokens = np.zeros((len(rows), lengths.max(initial=0)), np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.fromiter(
        chain.from_iterable(rows), np.int64
    )
    first_root = DEAD_END + 1
    node = first_root + np.repeat(np.arange(len(trees)), [len(tree) for tree in trees])
    nodes = first_root + len(trees)

    # Breadth first, one round per token: nodes are numbered, and edges come, in order.
    parents, edge_tokens, targets = [], [], []
    for depth in range(tokens.shape[1]):
        going_on = lengths > depth
        tokens, lengths, node = tokens[going_on], lengths[going_on], node[going_on]
        key = node * (1 << 32) + tokens[:, depth]
        edges, edge_of_row = np.unique(key, return_inverse=True)
        inner = np.zeros(len(edges), bool)
        inner[edge_of_row[lengths > depth + 1]] = True
        target = np.where(inner, nodes - 1 + np.cumsum(inner), DEAD_END)
        nodes += int(inner.sum())
        node = target[edge_of_row]
        parents.append(edges >> 32)
        edge_tokens.append(edges & 0xFFFFFFFF)
        targets.append(target)

    parent = np.concatenate([np.zeros(0, np.int64), *parents])
    fan_out = np.bincount(parent, minlength=nodes)
    width = power_of_two(int(fan_out.max()), at_least=8)
    size = power_of_two(len(parent) + width, at_least=64)
    first_edge = np.full(power_of_two(nodes + 1, at_least=64), len(parent), np.int32)
    first_edge[: nodes + 1] = np.concatenate([[0], np.cumsum(fan_out)])
    forest = PrefixForest(
        first_edge,
        _padded(edge_tokens, size),
        _padded(targets, size),
        np.arange(width, dtype=np.int32),
    )
    return forest, [first_root + tree for tree in tree_of_list]


def allowed_tokens(
    forest: PrefixForest, node: Int[Array, "*rows"], vocab_size: int
) -> Bool[Array, "*rows V"]:
    """Which tokens may come next at these nodes."""
    tokens, _ = _edges(forest, node.reshape(-1), absent_token=vocab_size)
    rows = jnp.arange(node.size)[:, None]
    on_an_edge = jnp.zeros((node.size, vocab_size), bool).at[rows, tokens].set(True, mode="drop")
    return on_an_edge.reshape(*node.shape, vocab_size) | (node == UNCONSTRAINED)[..., None]


def next_node(
    forest: PrefixForest, node: Int[Array, "*rows"], token: Int[Array, "*rows"]
) -> Int[Array, "*rows"]:
    """The nodes that these tokens lead to; a token that is not allowed leads to `DEAD_END`."""
    tokens, targets = _edges(forest, node, absent_token=-1)
    # At most one edge has the token, and DEAD_END is below every other target.
    reached = jnp.where(tokens == token[..., None], targets, DEAD_END).max(axis=-1)
    return jnp.where(node == UNCONSTRAINED, UNCONSTRAINED, reached)


def constrain(
    logits: Float[Array, "*rows V"],
    unprocessed: Float[Array, "*rows V"],
    allowed: Bool[Array, "*rows V"],
) -> Float[Array, "*rows V"]:
    """The logits with every token that is not allowed at minus infinity.

    logits: those after all logits processors. unprocessed: those before. Where the processors bar
    every allowed token, they do not apply: a constrained output is always one of its list, so the
    row becomes the allowed tokens of `unprocessed`. The same is true of the model itself, where it
    bars tokens by a bias of minus infinity.
    """
    yielding = jnp.maximum(unprocessed, _VERY_UNLIKELY)
    return unless_all_barred(
        jnp.where(allowed, logits, -jnp.inf), jnp.where(allowed, yielding, -jnp.inf)
    )


def _edges(
    forest: PrefixForest, node: Int[Array, "*rows"], absent_token: int
) -> tuple[Int[Array, "*rows width"], Int[Array, "*rows width"]]:
    """Tokens and targets of each node's edges, `absent_token` where it has fewer than most."""
    first_edge, edge_tokens, edge_targets, offsets = map(jnp.asarray, forest)
    edges = first_edge[node][..., None] + offsets
    exists = edges < first_edge[node + 1][..., None]
    return jnp.where(exists, edge_tokens[edges], absent_token), edge_targets[edges]


def _padded(parts: list[np.ndarray], size: int) -> Int[np.ndarray, " edges"]:
    padded = np.zeros(size, np.int32)
    edges = np.concatenate([np.zeros(0, np.int64), *parts])
    padded[: len(edges)] = edges
    return padded

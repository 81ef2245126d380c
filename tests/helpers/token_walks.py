"""Random outputs that an automaton allows, and whether it accepts a sequence of tokens."""

import random
from collections.abc import Sequence

import jax
import numpy as np

from pid_jax.decoding.token_automata import TokenAutomaton, after, allowed
from tests.helpers.tiny_tokenizers import END

STEP = jax.jit(lambda automaton, state, left: allowed(automaton, state, left))
AFTER = jax.jit(after)


def walk(
    automaton: TokenAutomaton, start: int, limit: int, seed: int = 0, rows: int = 24
) -> list[list[int]]:
    """Outputs of allowed tokens that random chooses, each at most `limit` long."""
    chosen = random.Random(seed)
    state, outputs, ended = np.full(rows, start, np.int32), [[] for _ in range(rows)], set()
    for step in range(limit):
        mask = np.asarray(STEP(automaton, state, limit - step))
        tokens = np.full(rows, END, np.int32)
        for row in set(range(rows)) - ended:
            options = np.flatnonzero(mask[row]).tolist()
            assert options, "no token is allowed"
            # Ends are rare among many tokens, and outputs of all lengths are wanted.
            ends = END in options and chosen.random() < 0.3
            tokens[row] = END if ends else chosen.choice(options)
            if tokens[row] == END:
                ended.add(row)
            else:
                outputs[row].append(int(tokens[row]))
        state = np.asarray(AFTER(automaton, state, tokens))
    return outputs


def accepts(automaton: TokenAutomaton, start: int, tokens: Sequence[int]) -> bool:
    state = start
    for token in tokens:
        state = automaton.next_state[state, automaton.token_class[token]]
    return bool(automaton.accepting[state])

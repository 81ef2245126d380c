"""The automata that follow each output: allowed outputs, patterns, and stop sequences.

Greedy decoding, sampling, beam search and prompt lookup use them through `Automata` alone: it says
the position of an output after a token, which tokens may come next, and whether a stop sequence is
complete. The position in an automaton is one integer, so beams inherit it by one gather.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.data.batching import Arr
from pid_jax.decoding import allowed_outputs, stop_sequences, token_automata
from pid_jax.decoding.allowed_outputs import UNCONSTRAINED, PrefixForest
from pid_jax.decoding.stop_sequences import StopAutomaton
from pid_jax.decoding.token_automata import TokenAutomaton


class Position(NamedTuple):
    """The states of outputs in the automata; None where a call has no such automaton."""

    node: Int[Arr, "*rows"] | None = None
    """In the forest of allowed outputs."""
    pattern: Int[Arr, "*rows"] | None = None
    """In the automaton of patterns."""
    stop: Int[Arr, "*rows"] | None = None
    """In the automaton of stop sequences."""


class Automata(NamedTuple):
    """The tables of a call, as arrays; None where the call has no such constraint."""

    forest: PrefixForest | None = None
    patterns: TokenAutomaton | None = None
    stops: StopAutomaton | None = None

    def start(self, shape: tuple[int, int, int], start: Position) -> Position:
        """Before the first token of each output.

        shape: documents, prompts, beams. start: `[B, P]`, each prompt's node in the forest and its
        state in the automaton of patterns.
        """
        node, pattern, _ = jax.tree.map(
            lambda leaf: jnp.broadcast_to(jnp.asarray(leaf)[:, :, None], shape), start
        )
        stop = None
        if self.stops is not None:
            stop = jnp.full(shape, stop_sequences.START, jnp.int32)
        return Position(node, pattern, stop)

    def after(self, position: Position, tokens: Int[Array, "*rows"]) -> Position:
        """After one more token of each output. Stop sequences do not apply to constrained ones."""
        node, pattern, stop = position
        if self.stops is not None and stop is not None:
            after = self.stops.after(jnp.asarray(stop), tokens)
            constrained = is_constrained(node) | is_constrained(pattern)
            stop = jnp.where(constrained, stop_sequences.START, after)
        if self.forest is not None and node is not None:
            node = allowed_outputs.next_node(self.forest, jnp.asarray(node), tokens)
        if self.patterns is not None and pattern is not None:
            pattern = token_automata.after(self.patterns, jnp.asarray(pattern), tokens)
        return Position(node, pattern, stop)

    def along(self, position: Position, tokens: Int[Array, "*rows N"]) -> Position:
        """`[*rows, N + 1]`: before these consecutive tokens, and after each."""
        positions = [position]
        for i in range(tokens.shape[-1]):
            positions.append(self.after(positions[-1], tokens[..., i]))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=-1), *positions)

    def stopped(self, position: Position) -> Bool[Array, "*rows"]:
        """Where a stop sequence is complete. A scalar if there are no stop sequences."""
        if self.stops is None or position.stop is None:
            return jnp.zeros((), bool)
        return self.stops.stopped(jnp.asarray(position.stop))

    def constrain(
        self,
        logits: Float[Array, "*rows V"],
        unprocessed: Float[Array, "*rows V"],
        position: Position,
        tokens_left: Int[Array, "*rows"],
    ) -> Float[Array, "*rows V"]:
        """The logits with all tokens barred that no allowed output has next.

        unprocessed: the logits before any logits processor, see `allowed_outputs.constrain`.
        tokens_left: the most tokens by which each output may grow.
        """
        masks = []
        if self.forest is not None and position.node is not None:
            node = jnp.asarray(position.node)
            masks.append(allowed_outputs.allowed_tokens(self.forest, node, logits.shape[-1]))
        if self.patterns is not None and position.pattern is not None:
            pattern = jnp.asarray(position.pattern)
            masks.append(token_automata.allowed(self.patterns, pattern, tokens_left))
        if not masks:
            return logits
        allowed = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        return allowed_outputs.constrain(logits, unprocessed, allowed)


def is_constrained(state: Int[Arr, "*rows"] | None) -> Bool[Array, "*rows"]:
    """Which outputs an automaton constrains. A scalar if the call has no such automaton."""
    if state is None:
        return jnp.zeros((), bool)
    return jnp.asarray(state) != UNCONSTRAINED

"""The automata that follow each output: allowed outputs, patterns, and stop sequences.

Greedy decoding, sampling, beam search and prompt lookup use them through `Automata` alone: it says
where an output stands after a token, which tokens may come next, and whether a stop sequence is
complete. An output stands in each automaton at one integer, so beams inherit it by one gather.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.data.batching import Arr
from pid_jax.decoding import allowed_outputs, stop_sequences
from pid_jax.decoding.allowed_outputs import UNCONSTRAINED, PrefixForest
from pid_jax.decoding.stop_sequences import StopAutomaton


class Position(NamedTuple):
    """Where outputs stand in the automata; None where a call has no such automaton."""

    node: Int[Array, "*rows"] | None
    """In the forest of allowed outputs."""
    stop: Int[Array, "*rows"] | None
    """In the automaton of stop sequences."""


class Automata(NamedTuple):
    """The tables of a call, as arrays; None where the call has no such constraint."""

    forest: PrefixForest | None = None
    stops: StopAutomaton | None = None

    def start(self, shape: tuple[int, int, int], roots: Int[Arr, "B P"] | None) -> Position:
        """Before the first token of each output.

        shape: documents, prompts, beams. roots: each prompt's node in the forest, if there is one.
        """
        node = stop = None
        if roots is not None:
            node = jnp.broadcast_to(jnp.asarray(roots)[:, :, None], shape)
        if self.stops is not None:
            stop = jnp.full(shape, stop_sequences.START, jnp.int32)
        return Position(node, stop)

    def after(self, position: Position, tokens: Int[Array, "*rows"]) -> Position:
        """After one more token of each output. Stop sequences do not apply to constrained ones."""
        node, stop = position
        if self.stops is not None and stop is not None:
            stop = self.stops.after(stop, tokens)
            if node is not None:
                stop = jnp.where(node == UNCONSTRAINED, stop, stop_sequences.START)
        if self.forest is not None and node is not None:
            node = allowed_outputs.next_node(self.forest, node, tokens)
        return Position(node, stop)

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
        return self.stops.stopped(position.stop)

    def constrain(
        self,
        logits: Float[Array, "*rows V"],
        unprocessed: Float[Array, "*rows V"],
        position: Position,
    ) -> Float[Array, "*rows V"]:
        """The logits with all tokens barred that no allowed output has next.

        unprocessed: the logits before any logits processor, for `allowed_outputs.constrain`.
        """
        if self.forest is None or position.node is None:
            return logits
        return allowed_outputs.constrain(logits, unprocessed, self.forest, position.node)


def is_constrained(position: Position) -> Bool[Array, "*rows"]:
    """Which outputs are constrained. A scalar if the call has no constraints."""
    if position.node is None:
        return jnp.zeros((), bool)
    return position.node != UNCONSTRAINED

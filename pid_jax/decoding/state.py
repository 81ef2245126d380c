"""What decoding carries from step to step."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from pid_jax.backends.layouts import KeyValue
from pid_jax.decoding.automata import Position


class LookupCounts(NamedTuple):
    """What prompt lookup has done for each prompt."""

    drafted: Int[Array, "B P"]
    """Tokens read from the document as guesses."""
    accepted: Int[Array, "B P"]
    """Those among them that greedy decoding selects."""


class Prompts(NamedTuple):
    """The state of every prompt; each leaf has leading axes `[B, P]`. W is the number of beams."""

    tokens: Int[Array, "B P L"]
    """The prompt, left-padded, the start token first."""
    mask: Bool[Array, "B P L"]
    max_new_tokens: Int[Array, "B P"]
    last: Int[Array, "B P W"]
    """The token that the decoder reads next."""
    sequences: Any
    """The state of the search (see `pid_jax.decoding.search`)."""
    position: Position
    """`[B, P, W]`, in the automata of the call."""
    key: UInt32[Array, "B P 2"] | None
    """Under sampling, the data of a threefry key."""
    lookup: LookupCounts | None
    """Under prompt lookup."""
    cache: tuple[KeyValue, ...]
    """Per layer, with batch axes B P W: the prompt's slots, then one for each token read."""

    @property
    def rows(self) -> tuple[int, int]:
        """The sizes of the axes B and P W, as the decoder sees them."""
        documents, prompts, beams = self.last.shape
        return documents, prompts * beams

    def filled(self, slot: Int[Array, ""] | Int[Array, "B P 1"]) -> Bool[Array, "B P slots"]:
        """The slots of the cache that have a token, if those below `slot` are written."""
        length = self.mask.shape[2]
        slots = self.cache[0].length()
        written = jnp.arange(length, slots) < slot
        written = jnp.broadcast_to(written, (*self.mask.shape[:2], slots - length))
        return jnp.concatenate([self.mask, written], axis=-1)


class State(NamedTuple):
    step: Int[Array, ""]
    """The tokens that every unfinished output has. Under prompt lookup, decoder calls so far."""
    prompts: Prompts

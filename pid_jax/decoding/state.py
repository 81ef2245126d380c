"""What the decoding loop carries from step to step."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from pid_jax.decoding.beam import Beams
from pid_jax.decoding.token_logprobs import TokenLogprobs
from pid_jax.models.protocol import KeyValue


class Chosen(NamedTuple):
    """One output of each prompt, as far as it has come."""

    tokens: Int[Array, "B P T"]
    lengths: Int[Array, "B P"]
    """How many of `tokens` were chosen, the end token among them; the rest is padding."""
    scores: Float[Array, "B P"]
    """The sum of the chosen tokens' log-probabilities, as the model gives them."""
    done: Bool[Array, "B P"]
    drafted: Int[Array, "B P"]
    """Tokens guessed from the document, and how many of those were right."""
    accepted: Int[Array, "B P"]
    logprobs: TokenLogprobs | None
    """Of `tokens`, where they are asked for."""


class Prompts(NamedTuple):
    """All that decoding keeps of each prompt; K is the number of beams, 1 without them."""

    tokens: Int[Array, "B P L"]
    """The prompt, left-padded, the start token first."""
    mask: Bool[Array, "B P L"]
    last: Int[Array, "B P K"]
    """The token to be fed back next."""
    outputs: Chosen | Beams
    node: Int[Array, "B P K"] | None
    """In the forest of allowed outputs, where there is one."""
    stop_state: Int[Array, "B P K"] | None
    """Of the automaton of stop sequences, where there are any."""
    key: UInt32[Array, "B P 2"] | None
    """Where tokens are sampled: the data of a threefry key."""
    cache: tuple[KeyValue, ...]
    """Per layer `[B, P, K, H, width, M]`: the prompt's slots, then one for each token fed back."""

    def filled(self, slot: Int[Array, ""] | Int[Array, "B P 1"]) -> Bool[Array, "B P M"]:
        """Which slots of the cache hold a token, where those below `slot` are written."""
        length = self.mask.shape[2]
        slots = self.cache[0].key.shape[-1]
        chosen = jnp.arange(length, slots) < slot
        chosen = jnp.broadcast_to(chosen, (*self.mask.shape[:2], slots - length))
        return jnp.concatenate([self.mask, chosen], axis=-1)


class State(NamedTuple):
    step: Int[Array, ""]
    """Tokens chosen so far by the prompts not done; with drafts, calls of the decoder so far."""
    prompts: Prompts

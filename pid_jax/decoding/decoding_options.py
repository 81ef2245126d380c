"""`DecodingOptions`: the one pytree that a compiled decoding program reads its options from."""

from collections.abc import Callable, Hashable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pid_jax.data.batching import Arr
from pid_jax.decoding.automata import Automata, Position, is_constrained
from pid_jax.decoding.logits_processors import LogitsContext
from pid_jax.decoding.search import GreedySearch
from pid_jax.decoding.state import Prompts
from pid_jax.errors import UserError


@flax.struct.dataclass
class PromptLookup:
    """The sizes of prompt lookup (`pid_jax.decoding.prompt_lookup`)."""

    draft_tokens: int = flax.struct.field(pytree_node=False)
    """Tokens guessed from the document in each call of the decoder."""
    ngram: int = flax.struct.field(pytree_node=False)
    """The longest end of an output that is looked up in the document."""


@flax.struct.dataclass
class DecodingOptions:
    """How outputs are selected.

    Numbers and tables are leaves: another value compiles nothing. The structure of the tree, its
    static fields included, is part of the compiled program. `GenerationOptions.compiled` makes one
    from the options of a call.
    """

    search: Any = GreedySearch()
    """A `pid_jax.decoding.search.Search`."""
    logits_processors: tuple[Any, ...] = ()
    """`LogitsProcessor`s, in the order in which they are applied."""
    automata: Any = Automata()
    lookup: Any = None
    """A `PromptLookup`, or None: every decode step selects one token."""
    forces_end: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether the last token of an output of the greatest length is a forced end token."""
    logprobs: int | None = flax.struct.field(pytree_node=False, default=None)
    """The number of likeliest tokens that are returned beside each token; None: nothing is."""

    def signature(self) -> Hashable:
        """What of the options a program is compiled for."""
        leaves, structure = jax.tree.flatten(self)
        return structure, tuple(leaf.shape for leaf in leaves)

    def process(
        self, logits: Float[Array, "B P R V"], context: LogitsContext, position: Position
    ) -> Float[Array, "B P R V"]:
        """Applies the logits processors, and then the constraints."""
        for processor in self.logits_processors:
            logits = _checked(processor, processor(logits, context), logits)
        tokens_left = context.max_new_tokens - context.step - self.forces_end
        return self.automata.constrain(logits, context.unprocessed, position, tokens_left)


def _checked(processor: Any, result: Any, logits: Float[Array, "B P R V"]) -> Array:
    """What a processor returns. Raises `UserError`, while tracing, unless it is logits."""
    if getattr(result, "shape", None) != logits.shape or result.dtype != logits.dtype:
        function = getattr(processor, "function", processor)
        name = getattr(function, "__name__", type(function).__name__)
        described = getattr(result, "aval", type(result).__name__)
        raise UserError(
            f"logits_processors: {name} must return {logits.dtype} logits of the shape "
            f"{logits.shape}, not {described}"
        )
    return result


def logits_context(
    prompts: Prompts,
    outputs: Int[Array, "B P #R T"],
    step: Int[Array, ""] | Int[Array, "B P R"],
    position: Position,
    documents: tuple[Int[Arr, "B S"], Any],
) -> Callable[[Float[Array, "B P R V"]], LogitsContext]:
    """The context of logits processors, as a function of the unprocessed logits.

    outputs: the tokens so far, `step` of them. position: `[B, P, R]`, before the next token.
    documents: with their mask. XLA drops whatever of it no processor reads.
    """

    def of(unprocessed: Float[Array, "B P R V"]) -> LogitsContext:
        shape = unprocessed.shape[:3]
        before = prompts.tokens.shape[2]
        steps = jnp.broadcast_to(step, shape)
        selected = jnp.broadcast_to(outputs, (*shape, outputs.shape[3]))
        tokens = jnp.broadcast_to(prompts.tokens[:, :, None], (*shape, before))
        mask = jnp.broadcast_to(prompts.mask[:, :, None], (*shape, before))
        written = jnp.arange(outputs.shape[3]) < steps[..., None]
        return LogitsContext(
            unprocessed=unprocessed,
            history=jnp.concatenate([tokens, selected], axis=-1),
            history_mask=jnp.concatenate([mask, written], axis=-1),
            length=before + steps,
            step=steps,
            max_new_tokens=prompts.max_new_tokens[..., None],
            has_prompt=prompts.mask.sum(axis=-1, keepdims=True) > 1,
            has_allowed_list=jnp.broadcast_to(is_constrained(position.node), shape),
            has_pattern=jnp.broadcast_to(is_constrained(position.pattern), shape),
            documents=jnp.asarray(documents[0]),
            document_mask=jnp.asarray(documents[1]),
        )

    return of

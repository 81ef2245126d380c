"""How tokens are selected: one interface for greedy decoding, sampling and beam search.

A search has a number of beams W (1 but for beam search) and four methods. `start` makes the empty
outputs, `select` adds a token to each that has not finished, `finished` says which prompts have,
and `best` returns their outputs. What applies to every search comes to it in a `SearchStep`: the
logits processors and allowed outputs as `process`, end tokens and stop sequences as `ends`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from pid_jax.backends.token_selection import likeliest_with_logprob
from pid_jax.decoding import token_logprobs
from pid_jax.decoding.logits_processors import LogitsContext
from pid_jax.decoding.token_logprobs import TokenLogprobs


class SearchStep(NamedTuple):
    """What every search reads in a step besides its own state and the logits."""

    step: Int[Array, ""]
    """The number of tokens that each unfinished output has."""
    max_new_tokens: Int[Array, "B P"]
    context: Callable[[Float[Array, "B P R V"]], LogitsContext]
    """The context of logits processors, for the unprocessed logits."""
    process: Callable[[Float[Array, "B P R V"]], Float[Array, "B P R V"]]
    """Applies the logits processors and the allowed outputs."""
    ends: Callable[[Int[Array, "B P C"], Int[Array, "B P C"]], Bool[Array, "B P C"]]
    """Whether candidates end their outputs, for each one's parent beam and token."""
    key: UInt32[Array, "B P 2"] | None
    """Data of a threefry key, for sampling."""
    pad_token_id: int
    end_token_count: int


class BestOutputs(NamedTuple):
    """The returned outputs of each prompt, the best first."""

    tokens: Int[Array, "B P returned T"]
    """Padded after `lengths`."""
    lengths: Int[Array, "B P returned"]
    """The number of selected tokens, the end token included; 0 where there is no output."""
    scores: Float[Array, "B P returned"]
    """The sum of the log-probabilities that the model gives the tokens."""
    logprobs: TokenLogprobs | None
    """`[B, P, returned, T]`."""


class Selection(NamedTuple):
    """The outputs after a step."""

    sequences: Any
    """The state of the search, whose leaves have leading axes `[B, P]`."""
    parents: Int[Array, "B P W"] | None
    """The beam that each beam continues; None: every beam continues itself."""
    tokens: Int[Array, "B P W"]
    """The token of each beam, to be read by the decoder in the next step."""


class Search(Protocol):
    """Greedy decoding, sampling or beam search; a pytree."""

    @property
    def beams(self) -> int:
        """W."""
        ...

    def start(
        self,
        active: Bool[Array, "B P"],
        length: int,
        pad_token_id: int,
        logprobs: TokenLogprobs | None,
    ) -> Any:
        """Empty outputs of at most `length` tokens; prompts that are not active have finished.

        logprobs: zeros `[B, P, W, T]` to be filled, or None.
        """
        ...

    def select(
        self, sequences: Any, logits: Float[Array, "B P R V"], step: SearchStep
    ) -> Selection:
        """Adds a token to every unfinished output. R is W, or 1 while all beams are the same."""
        ...

    def finished(self, sequences: Any) -> Bool[Array, "B P"]:
        """The prompts whose outputs do not change any more."""
        ...

    def best(self, sequences: Any, count: int) -> BestOutputs:
        """The `count` best outputs of each prompt so far; works on NumPy arrays too."""
        ...


class Sequences(NamedTuple):
    """One output of each prompt, the state of greedy decoding and of sampling."""

    tokens: Int[Array, "B P T"]
    lengths: Int[Array, "B P"]
    scores: Float[Array, "B P"]
    finished: Bool[Array, "B P"]
    logprobs: TokenLogprobs | None
    """`[B, P, T]`."""


@flax.struct.dataclass
class GreedySearch:
    """Selects the likeliest token."""

    @property
    def beams(self) -> int:
        """1."""
        return 1

    def start(
        self,
        active: Bool[Array, "B P"],
        length: int,
        pad_token_id: int,
        logprobs: TokenLogprobs | None,
    ) -> Sequences:
        """See `Search.start`."""
        return Sequences(
            tokens=jnp.full((*active.shape, length), pad_token_id, jnp.int32),
            lengths=jnp.zeros(active.shape, jnp.int32),
            scores=jnp.zeros(active.shape, jnp.float32),
            finished=~active,
            logprobs=jax.tree.map(lambda leaf: leaf[:, :, 0], logprobs),
        )

    def select(
        self, sequences: Sequences, logits: Float[Array, "B P 1 V"], step: SearchStep
    ) -> Selection:
        """See `Search.select`."""
        own = logits[:, :, 0]
        scores = self._scores(step.process(logits), logits, step)
        # The same array where nothing processes logits: a kernel then reads it once.
        processed = own if scores is logits else scores[:, :, 0]
        selected, log_probability = likeliest_with_logprob(processed, own)
        token = jnp.where(sequences.finished, step.pad_token_id, selected)
        logprobs = sequences.logprobs
        if logprobs is not None:
            top = token_logprobs.likeliest(own, logprobs.top.shape[-2])
            new = TokenLogprobs(log_probability, *top)
            logprobs = token_logprobs.written(logprobs, new, step.step)
        tokens = token[..., None]
        ended = step.ends(jnp.zeros_like(tokens), tokens)[..., 0]
        ended |= step.step + 1 >= step.max_new_tokens
        sequences = Sequences(
            tokens=jax.lax.dynamic_update_index_in_dim(sequences.tokens, token, step.step, axis=2),
            lengths=sequences.lengths + ~sequences.finished,
            scores=sequences.scores + jnp.where(sequences.finished, 0.0, log_probability),
            finished=sequences.finished | ended,
            logprobs=logprobs,
        )
        return Selection(sequences, None, tokens)

    def finished(self, sequences: Sequences) -> Bool[Array, "B P"]:
        """See `Search.finished`."""
        return sequences.finished

    def best(self, sequences: Sequences, count: int) -> BestOutputs:
        """See `Search.best`; there is one output."""
        del count
        outputs = sequences.tokens, sequences.lengths, sequences.scores, sequences.logprobs
        return BestOutputs(*jax.tree.map(lambda leaf: leaf[:, :, None], outputs))

    def _scores(
        self,
        processed: Float[Array, "B P 1 V"],
        logits: Float[Array, "B P 1 V"],
        step: SearchStep,
    ) -> Float[Array, "B P 1 V"]:
        """What the selected token is the largest of."""
        del logits, step
        return processed


@flax.struct.dataclass
class Sampling(GreedySearch):
    """Draws a token from the softmax of the processed logits."""

    processors: tuple[Any, ...] = ()
    """`LogitsProcessor`s for temperature and truncation, applied after all others."""

    def _scores(
        self,
        processed: Float[Array, "B P 1 V"],
        logits: Float[Array, "B P 1 V"],
        step: SearchStep,
    ) -> Float[Array, "B P 1 V"]:
        """Gumbel noise: its sum with the logits is largest at a sample of their softmax."""
        context = step.context(logits)
        for processor in self.processors:
            processed = processor(processed, context)
        if step.key is None:
            raise ValueError("sampling needs a key for each prompt")

        def noise(key: UInt32[Array, "2"]) -> Float[Array, " V"]:
            typed = jax.random.fold_in(
                jax.random.wrap_key_data(key, impl="threefry2x32"), step.step
            )
            return jax.random.gumbel(typed, processed.shape[-1:], jnp.float32)

        return processed + jax.vmap(jax.vmap(noise))(step.key)[:, :, None]

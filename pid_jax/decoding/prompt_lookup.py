"""Prompt lookup: speculative decoding with guesses that are read from the document.

Answers, summaries and dialogue states repeat their document. Where the last tokens of an output
occur in it, the tokens after that occurrence are a guess at the next tokens. The decoder reads all
guesses in one call, and those that greedy decoding selects itself are accepted. This is
speculative decoding (Leviathan et al., arXiv 2211.17192) with the input as the draft model, known
as prompt lookup decoding and, for edits, from Yang et al., "Inference with Reference", arXiv
2304.04487. The tokens are those of greedy decoding. Only the number of decoder calls changes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from pid_jax import prompt_in_decoder
from pid_jax.backends.selection import likeliest, token_log_probabilities
from pid_jax.data.batching import Arr
from pid_jax.decoding import token_logprobs
from pid_jax.decoding.decoding_options import DecodingOptions, logits_context
from pid_jax.decoding.logits import is_one_of
from pid_jax.decoding.search import Sequences
from pid_jax.decoding.state import LookupCounts, Prompts, State
from pid_jax.decoding.token_logprobs import TokenLogprobs
from pid_jax.models.protocol import EncoderDecoder, KeyValue, Params, Past, end_token_ids
from pid_jax.prompt_in_decoder import EncodedDocuments


def look_up(
    documents: Int[Arr, "B S"],
    document_mask: Bool[Arr, "B S"],
    history: Int[Array, "B P L"],
    history_mask: Bool[Array, "B P L"],
    length: Int[Array, "B P"],
    count: int,
    ngram: int,
) -> tuple[Int[Array, "B P guesses"], Int[Array, "B P"]]:
    """The `count` tokens after the best match of each output's end in its document.

    history: prompt and output, of which the first `length` columns are filled. The best match is
    the longest, up to `ngram` tokens, and of equally long ones the first. Returns the guesses,
    arbitrary where nothing matches or the document ends, and the number of them that the document
    has.
    """
    size = documents.shape[1]
    matched = jnp.zeros((*length.shape, size), jnp.int32)
    matches = jnp.broadcast_to(document_mask[:, None], matched.shape)
    shifted = documents
    for i in range(ngram):
        column = length[..., None] - 1 - i
        token = jnp.take_along_axis(history, jnp.maximum(column, 0), axis=-1)
        real = jnp.take_along_axis(history_mask, jnp.maximum(column, 0), axis=-1) & (column >= 0)
        # shifted[s] is the document's token i positions before s.
        matches = matches & real & (shifted[:, None] == token) & (jnp.arange(size) >= i)
        matched += matches
        shifted = jnp.roll(shifted, 1, axis=-1)
    has_next = jnp.concatenate(
        [document_mask[:, 1:], jnp.zeros_like(document_mask[:, :1])], axis=-1
    )
    matched = jnp.where(has_next[:, None], matched, 0)
    index = matched.argmax(axis=-1)[..., None] + 1 + jnp.arange(count)
    inside = jnp.minimum(index, size - 1)
    tokens = jnp.take_along_axis(documents[:, None], inside, axis=-1)
    exists = (index < size) & jnp.take_along_axis(document_mask[:, None], inside, axis=-1)
    exists &= (matched.max(axis=-1) > 0)[..., None]
    return tokens, exists.sum(axis=-1, dtype=jnp.int32)


def decode_step(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    state: State,
    options: DecodingOptions,
) -> State:
    """Guesses tokens from the document and accepts those that greedy decoding selects.

    With G guesses the decoder reads R = G + 1 tokens, the last one of the output before them, and
    greedy decoding selects one after each. A selected token counts if all guesses before it are
    right.
    """
    step, prompts = state
    sequences = prompts.sequences
    assert isinstance(sequences, Sequences)
    assert prompts.lookup is not None
    guesses, in_document = _guess(encoded, prompts, sequences, options)
    read = jnp.concatenate([prompts.last, guesses], axis=-1)
    logits, cache = _read(model, params, encoded, prompts, sequences, read)

    before = jax.tree.map(lambda leaf: leaf[:, :, 0], prompts.position)
    steps = sequences.lengths[..., None] + jnp.arange(read.shape[-1])
    position = options.automata.along(before, guesses)
    context = logits_context(
        prompts,
        _with_guesses(sequences, guesses)[:, :, None],
        steps,
        position,
        (encoded.tokens, encoded.mask),
    )
    tokens = likeliest(options.process(logits, context(logits), position))
    right = jnp.cumprod(tokens[..., :-1] == guesses, axis=-1, dtype=jnp.int32)
    right = right.sum(axis=-1, dtype=jnp.int32)

    positions = options.automata.along(before, tokens)
    after_each = jax.tree.map(lambda leaf: leaf[..., 1:], positions)
    ends = is_one_of(tokens, end_token_ids(model.config)) | options.automata.stopped(after_each)
    ends |= steps + 1 >= prompts.max_new_tokens[..., None]
    ended_before = jnp.cumsum(ends, axis=-1) - ends > 0
    counts = (jnp.arange(read.shape[-1]) <= right[..., None]) & ~ended_before
    counts &= ~sequences.finished[..., None]
    count = counts.sum(axis=-1, dtype=jnp.int32)

    log_probabilities = token_log_probabilities(logits, tokens)
    return State(
        step + 1,
        prompts._replace(
            last=_at(tokens, jnp.maximum(count - 1, 0)),
            position=jax.tree.map(lambda leaf: _at(leaf, count), positions),
            cache=cache,
            sequences=Sequences(
                tokens=_written(sequences.tokens, tokens, sequences.lengths, count),
                lengths=sequences.lengths + count,
                scores=sequences.scores + jnp.where(counts, log_probabilities, 0.0).sum(axis=-1),
                finished=sequences.finished | (ends & counts).any(axis=-1),
                logprobs=_with_logprobs(sequences, logits, log_probabilities, count),
            ),
            lookup=LookupCounts(
                prompts.lookup.drafted + jnp.where(sequences.finished, 0, in_document),
                # Tokens beyond the document's may be right too, by chance. They do not count.
                prompts.lookup.accepted + jnp.minimum(jnp.minimum(right, count), in_document),
            ),
        ),
    )


def _guess(
    encoded: EncodedDocuments, prompts: Prompts, sequences: Sequences, options: DecodingOptions
) -> tuple[Int[Array, "B P guesses"], Int[Array, "B P"]]:
    return look_up(
        encoded.tokens,
        encoded.mask,
        jnp.concatenate([prompts.tokens, sequences.tokens], axis=-1),
        jnp.concatenate([prompts.mask, jnp.ones_like(sequences.tokens, bool)], axis=-1),
        prompts.tokens.shape[2] + sequences.lengths,
        options.lookup.draft_tokens,
        options.lookup.ngram,
    )


def _read(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    prompts: Prompts,
    sequences: Sequences,
    tokens: Int[Array, "B P R"],
) -> tuple[Float[Array, "B P R V"], tuple[KeyValue, ...]]:
    """Runs the decoder on these tokens of every prompt: logits, and the cache with them in it.

    Outputs grow at different rates, so every prompt has its own slots for its next tokens.
    """
    length, count = prompts.tokens.shape[2], tokens.shape[-1]
    first = length + sequences.lengths[..., None] - 1
    slots = first + jnp.arange(count)
    past = Past(jax.tree.map(lambda layer: layer[:, :, 0], prompts.cache), prompts.filled(first))
    positions = prompt_in_decoder.positions_of(prompts.mask)[:, :, -1:] + slots - length + 1
    hidden, present = prompt_in_decoder.decode(
        model, params, encoded, tokens, jnp.ones_like(tokens, bool), positions, slots, past
    )
    written = tuple(
        old.write_each(new, first[..., 0]) for old, new in zip(past.layers, present, strict=True)
    )
    cache = jax.tree.map(lambda leaf: leaf[:, :, None], written)
    return model.apply({"params": params}, hidden, method="logits"), cache


def _with_guesses(
    sequences: Sequences, guesses: Int[Array, "B P guesses"]
) -> Int[Array, "B P T_guesses"]:
    """The outputs followed by their guesses, in longer arrays."""
    padding = jnp.zeros(guesses.shape, sequences.tokens.dtype)
    tokens = jnp.concatenate([sequences.tokens, padding], axis=-1)
    return _written(tokens, guesses, sequences.lengths, jnp.int32(guesses.shape[-1]))


def _with_logprobs(
    sequences: Sequences,
    logits: Float[Array, "B P R V"],
    log_probabilities: Float[Array, "B P R"],
    count: Int[Array, "B P"],
) -> TokenLogprobs | None:
    """The log-probabilities of the first `count` selected tokens, after those before them."""
    logprobs = sequences.logprobs
    if logprobs is None:
        return None
    start = sequences.lengths
    top, top_tokens = (
        jnp.moveaxis(leaf, -1, -2)
        for leaf in token_logprobs.likeliest(logits, logprobs.top.shape[-2])
    )
    return TokenLogprobs(
        _written(logprobs.selected, log_probabilities, start, count),
        _written(logprobs.top, top, start[..., None], count[..., None]),
        _written(logprobs.top_tokens, top_tokens, start[..., None], count[..., None]),
    )


def _at(values: Int[Array, "B P N"], index: Int[Array, "B P"]) -> Int[Array, "B P 1"]:
    return jnp.take_along_axis(values, index[..., None], axis=-1)


def _written(
    old: Shaped[Array, "*rows columns"],
    new: Shaped[Array, "*rows more"],
    start: Int[Array, "*#rows"],
    count: Int[Array, "*#rows"],
) -> Shaped[Array, "*rows columns"]:
    """`old` with the first `count` columns of `new` from column `start` on."""
    offset = jnp.arange(old.shape[-1]) - start[..., None]
    inside = (offset >= 0) & (offset < count[..., None])
    index = jnp.clip(offset, 0, new.shape[-1] - 1)
    return jnp.where(inside, jnp.take_along_axis(new, index, axis=-1), old)

"""Prompt-in-decoder: encode a document once, decode all of its prompts against it.

Lu et al., "Efficient Encoder-Decoder Transformer Decoding for Decomposable Tasks",
arXiv 2403.13112. A document x is asked P prompts z_1 ... z_P with targets y_1 ... y_P.

    prompt in encoder (PiE):  y_p ~ Decoder([start],      Encoder([z_p ; x]))   P encodings
    prompt in decoder (PiD):  y_p ~ Decoder([start ; z_p], Encoder(x))          one encoding

Under PiD the encoder's output, and the cross-attention keys and values projected from it,
have no prompt axis at all. `jax.vmap` over the decoder, with the document closed over, turns
P prompts into P more rows of the same matrix products: keys and values are stored once per
document and read once per step for all of its prompts together.

PiE is the baseline, and the same code: a batch in which every (document, prompt) pair is a
document of its own, whose one prompt is empty (`prompt_in_encoder`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pid_jax.data.batching import Arr, Batch
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.models.protocol import EncoderDecoder, KeyValue, Params, Past


class EncodedDocuments(NamedTuple):
    """All that decoding needs of B documents. Nothing in it grows with the prompts."""

    cross_attention: tuple[KeyValue, ...]
    """Per decoder layer, `[B, H, K, S]`."""
    mask: Bool[Arr, "B S"]
    tokens: Int[Arr, "B S"]
    """The documents themselves: outputs may be guessed from them."""


def encode(
    model: EncoderDecoder,
    params: Params,
    documents: Int[Arr, "B S"],
    document_mask: Bool[Arr, "B S"],
    dropout_key: Key[Array, ""] | None = None,
) -> EncodedDocuments:
    """Encodes each document once and projects its cross-attention keys and values once.

    An empty document is read as a single padding token, as transformers reads it. Attention to
    masked tokens only would depend on their number, hence on the batch.
    """
    empty = ~jnp.any(document_mask, axis=1, keepdims=True)
    documents = jnp.where(empty, model.config.pad_token_id, documents)
    document_mask = document_mask | (empty & (jnp.arange(documents.shape[1]) == 0))
    variables = {"params": params}
    encoder_output = model.apply(
        variables,
        documents,
        document_mask,
        deterministic=dropout_key is None,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
        method="encode",
    )
    cross_attention = model.apply(variables, encoder_output, method="project_cross_attention")
    return EncodedDocuments(cross_attention, document_mask, documents)


def decode(
    model: EncoderDecoder,
    params: Params,
    encoded: EncodedDocuments,
    tokens: Int[Arr, "B P L"],
    token_mask: Bool[Arr, "B P L"],
    positions: Int[Arr, "B P L"],
    slots: Int[Arr, "#B L"] | Int[Arr, "B P L"],
    past: Past | None = None,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B P L D"], tuple[KeyValue, ...]]:
    """Runs the decoder on L tokens of every prompt, against one encoding per document.

    The arguments are those of `EncoderDecoder.decode` with a prompt axis: `past` holds
    `[B, P, H, K, M]`, and so do the keys and values returned for the new tokens. `slots` has
    one only where the prompts of a document do not agree on the slots of their tokens.
    """
    encoded = jax.tree.map(jnp.asarray, encoded)

    def decode_one_prompt(
        tokens: Int[Array, "B L"],
        token_mask: Bool[Array, "B L"],
        positions: Int[Array, "B L"],
        slots: Int[Array, "#B L"],
        past: Past | None,
        dropout_key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "B L D"], tuple[KeyValue, ...]]:
        return model.apply(
            {"params": params},
            tokens,
            token_mask,
            positions,
            slots,
            encoded.cross_attention,
            encoded.mask,
            past,
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
            method="decode",
        )

    keys = None if dropout_key is None else jax.random.split(dropout_key, tokens.shape[1])
    over_slots = 1 if slots.ndim == 3 else None
    over_prompts = jax.vmap(decode_one_prompt, in_axes=(1, 1, 1, over_slots, 1, 0), out_axes=1)
    return over_prompts(
        jnp.asarray(tokens),
        jnp.asarray(token_mask),
        jnp.asarray(positions),
        jnp.asarray(slots),
        past,
        keys,
    )


def positions_of(mask: Bool[Arr, "*batch L"]) -> Int[Array, "*batch L"]:
    """Each token's position in its own sequence; padding before it is not counted."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def teacher_forced_logits(
    model: EncoderDecoder,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B P T V"]:
    """Logits, float32, for each target token given the document, its prompt and the target so far.

    The decoder reads `[start ; prompt ; target]` less the target's last token; only the
    outputs that predict a target token reach the head.
    """
    predicting = _predicting_outputs(model, params, batch, dropout_key)
    return model.apply({"params": params}, predicting, method="logits")


def _predicting_outputs(
    model: EncoderDecoder,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ""] | None = None,
    encoded: EncodedDocuments | None = None,
) -> Float[Array, "B P T D"]:
    """The decoder's outputs from which the head predicts the target tokens."""
    encoder_key = decoder_key = None
    if dropout_key is not None:
        encoder_key, decoder_key = jax.random.split(dropout_key)
    if encoded is None:
        encoded = encode(model, params, batch.documents, batch.document_mask, encoder_key)
    tokens = jnp.concatenate([batch.prompts, batch.targets[..., :-1]], axis=-1)
    mask = jnp.concatenate([batch.prompt_mask, batch.target_mask[..., :-1]], axis=-1)
    slots = jnp.arange(tokens.shape[-1])[None]
    hidden, _ = decode(
        model, params, encoded, tokens, mask, positions_of(mask), slots, dropout_key=decoder_key
    )
    return hidden[:, :, batch.prompts.shape[-1] - 1 :]


def token_log_probabilities(
    logits: Float[Arr, "*rows V"], tokens: Int[Arr, "*rows"]
) -> Float[Array, "*rows"]:
    """The logarithm of the softmax of the logits at these tokens."""
    of_tokens = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return of_tokens - jax.nn.logsumexp(logits, axis=-1)


LOGITS_AT_ONCE = 1 << 25
"""The most logits that scoring holds (128 MiB in float32), unless one vocabulary has more."""


def target_log_probabilities(
    model: EncoderDecoder,
    params: Params,
    batch: Batch,
    encoded: EncodedDocuments | None = None,
) -> Float[Array, "B P"]:
    """log p(target | document, prompt), summed over the target's tokens; 0 for no target.

    encoded: the batch's documents, where they are encoded already.

    The head runs on some target tokens at a time: memory does not grow with tokens times
    vocabulary.
    """
    targets = jnp.asarray(batch.targets)
    hidden = _predicting_outputs(model, params, batch, encoded=encoded)

    def log_probabilities(hidden: Float[Array, "N D"], tokens: Int[Array, " N"]) -> Array:
        logits = model.apply({"params": params}, hidden, method="logits")
        return token_log_probabilities(logits, tokens)

    rows = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    found = _by_chunks(log_probabilities, max(LOGITS_AT_ONCE // model.config.vocab_size, 1), *rows)
    return jnp.where(batch.target_mask, found.reshape(targets.shape), 0.0).sum(axis=-1)


def _by_chunks(function: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """`function(*arrays)`, computed from `size` rows of the arrays at a time."""
    count = len(arrays[0])
    if count <= size:
        return function(*arrays)
    chunks = -(-count // size)
    size = -(-count // chunks)  # of equal sizes, so that little is padding

    def in_chunks(x: Array) -> Array:
        padded = jnp.pad(x, [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunks, size, *x.shape[1:])

    found = jax.lax.map(lambda rows: function(*rows), tuple(map(in_chunks, arrays)))
    return found.reshape(-1, *found.shape[2:])[:count]


class LossMetrics(NamedTuple):
    """What one batch says of the model, as sums and counts, from which the means follow.

    The fields of several batches, shards or micro-batches add up
    (`jax.tree.map(jnp.add, first, second)`, `jax.lax.psum(metrics, axis)`), and the means of the
    result are those of all their tokens, however unequally these are distributed.
    """

    loss_sum: Float[Arr, ""]
    """Cross-entropy of all target tokens in nats, without label smoothing or z-loss."""
    correct_tokens: Int[Arr, ""]
    """Target tokens that are the likeliest ones given those before them."""
    exact_matches: Int[Arr, ""]
    """Subtasks whose every target token is so."""
    target_tokens: Int[Arr, ""]
    subtasks: Int[Arr, ""]
    """Those that have a target."""

    @property
    def loss(self) -> Float[Arr, ""]:
        """Cross-entropy in nats per target token; 0 without any."""
        return self.loss_sum / jnp.maximum(self.target_tokens, 1)

    @property
    def token_accuracy(self) -> Float[Arr, ""]:
        """Share of target tokens that are correct; 0 without any."""
        return self.correct_tokens / jnp.maximum(self.target_tokens, 1)

    @property
    def exact_match(self) -> Float[Arr, ""]:
        """Share of subtasks that match exactly; 0 without any."""
        return self.exact_matches / jnp.maximum(self.subtasks, 1)


def loss(
    model: EncoderDecoder,
    params: Params,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, ""], LossMetrics]:
    """Mean loss per target token: the start token and the prompt are never predicted.

    label_smoothing: the share of the target's probability spread evenly over the vocabulary
    (Szegedy et al., arXiv 1512.00567, section 7). z_loss: weight of the squared log of the
    softmax's normaliser (Chowdhery et al., arXiv 2204.02311, section 5).
    To average losses or gradients of several batches over their tokens, weight each by its
    `LossMetrics.target_tokens`.
    """
    logits = teacher_forced_logits(model, params, batch, dropout_key)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    cross_entropy = -token_log_probabilities(logits, batch.targets)
    objective = cross_entropy
    if label_smoothing:
        even = normaliser - logits.mean(axis=-1)
        objective = (1 - label_smoothing) * objective + label_smoothing * even
    if z_loss:
        objective = objective + z_loss * jnp.square(normaliser)

    mask = batch.target_mask
    has_target = mask.any(axis=-1)
    right = logits.argmax(axis=-1) == batch.targets
    metrics = LossMetrics(
        loss_sum=jnp.where(mask, cross_entropy, 0.0).sum(),
        correct_tokens=(right & mask).sum(dtype=jnp.int32),
        exact_matches=((right | ~mask).all(axis=-1) & has_target).sum(dtype=jnp.int32),
        target_tokens=jnp.sum(mask, dtype=jnp.int32),
        subtasks=jnp.sum(has_target, dtype=jnp.int32),
    )
    total = jnp.where(mask, objective, 0.0).sum()
    return total / jnp.maximum(metrics.target_tokens, 1), metrics


def prompt_in_encoder(
    examples: Sequence[TokenizedExample], leading: Sequence[int] = ()
) -> list[TokenizedExample]:
    """The PiE baseline: every (document, prompt) pair as a document with one empty prompt.

    The new documents are prompt tokens then document tokens, in order of document, then
    prompt. leading: tokens that begin a text, such as BART's `<s>`; where a document has them,
    they stay in front.
    """
    pairs = []
    for example in examples:
        document, front = list(example.document), len(leading)
        if document[:front] != list(leading):
            front = 0
        for prompt, target in zip(example.prompts, example.targets, strict=True):
            pair = [*document[:front], *prompt, *document[front:]]
            pairs.append(TokenizedExample(example.id, pair, [()], [target]))
    return pairs

"""Prompt-in-decoder: encode a document once, decode all of its prompts against it.

Lu et al., "Efficient Encoder-Decoder Transformer Decoding for Decomposable Tasks",
arXiv 2403.13112. A document x has P prompts z_1 ... z_P with targets y_1 ... y_P.

    prompt in encoder (PiE):  y_p ~ Decoder([start],      Encoder([z_p ; x]))   P encodings
    prompt in decoder (PiD):  y_p ~ Decoder([start ; z_p], Encoder(x))          one encoding

Under PiD the encoder output and the cross-attention keys and values have no prompt axis.
`jax.vmap` over the decoder, with the document as a closure, adds P rows to the same matrix
products. Keys and values are stored once per document and read once per decode step for all of
its prompts.

PiE is the baseline and uses the same code: `prompt_in_encoder` turns every (document, prompt)
pair into a document with one empty prompt.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pid_jax import sharding
from pid_jax.backends.selection import token_log_probabilities as token_log_probabilities
from pid_jax.data.batching import Arr, Batch
from pid_jax.data.packing import PackedBatch
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.models.protocol import EncoderDecoder, KeyValue, Params, Past
from pid_jax.token_scores import TokenScores, token_scores


class EncodedDocuments(NamedTuple):
    """B encoded documents: the decoder's inputs that do not depend on prompts."""

    cross_attention: tuple[KeyValue, ...]
    """Keys and values per decoder layer, `[B, H, K, S]`."""
    mask: Bool[Arr, "B S"]
    tokens: Int[Arr, "B S"]
    """The token ids of the documents, for prompt lookup."""


def encode(
    model: EncoderDecoder,
    params: Params,
    documents: Int[Arr, "B S"],
    document_mask: Bool[Arr, "B S"],
    dropout_key: Key[Array, ""] | None = None,
) -> EncodedDocuments:
    """Encodes each document once and projects its cross-attention keys and values once.

    An empty document becomes a single padding token, as in transformers. Without it, attention
    would have masked inputs only, and the result would depend on their number.
    """
    empty = ~jnp.any(document_mask, axis=1, keepdims=True)
    documents = jnp.where(empty, model.config.pad_token_id, documents)
    document_mask = document_mask | (empty & (jnp.arange(documents.shape[1]) == 0))
    variables = {"params": params}
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    encoder_output = model.apply(
        variables,
        documents,
        document_mask,
        deterministic=dropout_key is None,
        rngs=rngs,
        method="encode",
    )
    # Adapters have dropout before these projections, too.
    cross_attention = model.apply(
        variables, encoder_output, rngs=rngs, method="project_cross_attention"
    )
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
    segments: Int[Arr, "B P L"] | None = None,
) -> tuple[Float[Array, "B P L D"], tuple[KeyValue, ...]]:
    """Runs the decoder on L tokens of every prompt, against one encoding per document.

    The arguments are those of `EncoderDecoder.decode` with a prompt axis. The keys and values of
    `past` are `[B, P, H, K, slots]`, those returned for the new tokens `[B, P, H, K, L]`. `slots`
    needs a prompt axis only if the prompts of a document differ in the slots of their tokens. With
    `segments` the P rows are packed rows of several prompts each (`pid_jax.data.packing`).
    """
    encoded = jax.tree.map(jnp.asarray, encoded)

    def decode_one_prompt(
        tokens: Int[Array, "B L"],
        token_mask: Bool[Array, "B L"],
        positions: Int[Array, "B L"],
        slots: Int[Array, "#B L"],
        past: Past | None,
        dropout_key: Key[Array, ""] | None,
        segments: Int[Array, "B L"] | None,
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
            segments,
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
            method="decode",
        )

    keys = None if dropout_key is None else jax.random.split(dropout_key, tokens.shape[1])
    over_slots = 1 if slots.ndim == 3 else None
    axes = (1, 1, 1, over_slots, 1, 0, 1)
    return jax.vmap(decode_one_prompt, in_axes=axes, out_axes=1)(
        jnp.asarray(tokens),
        jnp.asarray(token_mask),
        jnp.asarray(positions),
        jnp.asarray(slots),
        past,
        keys,
        None if segments is None else jnp.asarray(segments),
    )


def positions_of(mask: Bool[Arr, "*batch L"]) -> Int[Array, "*batch L"]:
    """Each token's position in its sequence, not counting left padding."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def teacher_forced_logits(
    model: EncoderDecoder,
    params: Params,
    batch: Batch | PackedBatch,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B *P T V"]:
    """Logits (float32) for each target token, given the document, the prompt and earlier targets.

    The decoder input is `[start ; prompt ; target]` without the last target token. The head
    computes logits only for outputs that predict a target token.
    """
    predicting = _predicting_outputs(model, params, batch, dropout_key)
    return model.apply({"params": params}, predicting, method="logits")


def _predicting_outputs(
    model: EncoderDecoder,
    params: Params,
    batch: Batch | PackedBatch,
    dropout_key: Key[Array, ""] | None = None,
    encoded: EncodedDocuments | None = None,
) -> Float[Array, "B *P T D"]:
    """The decoder's outputs from which the head predicts the target tokens."""
    encoder_key = decoder_key = None
    if dropout_key is not None:
        encoder_key, decoder_key = jax.random.split(dropout_key)
    if encoded is None:
        encoded = encode(model, params, batch.documents, batch.document_mask, encoder_key)
    if isinstance(batch, PackedBatch):
        slots = jnp.arange(batch.tokens.shape[-1])[None]
        hidden, _ = decode(
            model,
            params,
            encoded,
            batch.tokens,
            batch.segments > 0,
            batch.positions,
            slots,
            dropout_key=decoder_key,
            segments=batch.segments,
        )
        rows = hidden.reshape(len(hidden), -1, hidden.shape[-1])
        return jnp.take_along_axis(rows, jnp.asarray(batch.predicting)[..., None], axis=1)
    tokens = jnp.concatenate([batch.prompts, batch.targets[..., :-1]], axis=-1)
    mask = jnp.concatenate([batch.prompt_mask, batch.target_mask[..., :-1]], axis=-1)
    slots = jnp.arange(tokens.shape[-1])[None]
    hidden, _ = decode(
        model, params, encoded, tokens, mask, positions_of(mask), slots, dropout_key=decoder_key
    )
    return hidden[:, :, batch.prompts.shape[-1] - 1 :]


LOGITS_AT_ONCE = 1 << 25
"""Maximum number of logits in the memory of a device in scoring and training (128 MiB in float32),
at least V."""


def target_scores(
    model: EncoderDecoder,
    params: Params,
    batch: Batch | PackedBatch,
    dropout_key: Key[Array, ""] | None = None,
    encoded: EncodedDocuments | None = None,
) -> TokenScores:
    """The scores of each target token, as `batch.targets`. Zero or False for padding.

    encoded: the encoding of the batch's documents, None to compute it.

    The head processes target tokens in chunks of at most `LOGITS_AT_ONCE` logits on each device. A
    loss that is computed from these scores has an exact gradient.
    """
    targets, mask = jnp.asarray(batch.targets), jnp.asarray(batch.target_mask)
    hidden = _predicting_outputs(model, params, batch, dropout_key, encoded)
    rows = hidden.reshape(len(targets), -1, hidden.shape[-1])
    scores = token_scores(
        model,
        params,
        rows,
        targets.reshape(rows.shape[:2]),
        mask.reshape(rows.shape[:2]),
        LOGITS_AT_ONCE * sharding.shares("batch") * sharding.shares("vocab"),
    )
    return TokenScores(*(score.reshape(targets.shape) for score in scores))


def target_log_probabilities(
    model: EncoderDecoder,
    params: Params,
    batch: Batch,
    encoded: EncodedDocuments | None = None,
) -> Float[Array, "B P"]:
    """log p(target | document, prompt) in nats, summed over the target's tokens. 0 for no target.

    The arguments are those of `target_scores`.
    """
    return target_scores(model, params, batch, encoded=encoded).log_probability.sum(axis=-1)


def packed_log_probabilities(
    model: EncoderDecoder,
    params: Params,
    batch: PackedBatch,
    encoded: EncodedDocuments | None = None,
) -> Float[Array, "B T"]:
    """The log-probability of each target token in nats. 0 for padding.

    The arguments are those of `target_scores`.
    """
    return target_scores(model, params, batch, encoded=encoded).log_probability


def correct_subtasks(
    batch: Batch | PackedBatch, is_highest: Bool[Array, "B *P T"]
) -> tuple[Bool[Array, "B subtasks"], Bool[Array, "B subtasks"]]:
    """Which subtasks have all target tokens right, and which entries are subtasks with a target.

    is_highest: of `TokenScores`. The entries of a document are its prompts, or in a packed batch
    its target tokens, of which the last one of each target stands for the subtask.
    """
    mask = jnp.asarray(batch.target_mask)
    if not isinstance(batch, PackedBatch):
        return jnp.all(is_highest | ~mask, axis=-1), jnp.any(mask, axis=-1)
    segments = jnp.asarray(batch.segments).reshape(len(mask), -1)
    subtasks = jnp.take_along_axis(segments, jnp.asarray(batch.predicting), axis=1) * mask
    wrong = (mask & ~is_highest).astype(jnp.int32)
    so_far = jnp.cumsum(wrong, axis=-1)
    first = mask & (subtasks != jnp.pad(subtasks[:, :-1], ((0, 0), (1, 0))))
    before = jax.lax.cummax(jnp.where(first, so_far - wrong, 0), axis=1)
    last = mask & (subtasks != jnp.pad(subtasks[:, 1:], ((0, 0), (0, 1))))
    return last & (so_far == before), last


class LossMetrics(NamedTuple):
    """Sums and counts over a batch, with means as properties.

    The fields of several batches, shards or micro-batches can be added
    (`jax.tree.map(jnp.add, first, second)`, `jax.lax.psum(metrics, axis)`). The means of the sum
    are exact means over all tokens.
    """

    loss_sum: Float[Arr, ""]
    """Cross-entropy of all target tokens in nats, without label smoothing or z-loss."""
    correct_tokens: Int[Arr, ""]
    """Number of target tokens with the highest logit."""
    exact_matches: Int[Arr, ""]
    """Number of subtasks with all target tokens correct."""
    target_tokens: Int[Arr, ""]
    """Number of target tokens."""
    subtasks: Int[Arr, ""]
    """Number of subtasks with a target."""

    @property
    def loss(self) -> Float[Arr, ""]:
        """Cross-entropy in nats per target token. 0 without target tokens."""
        return self.loss_sum / jnp.maximum(self.target_tokens, 1)

    @property
    def token_accuracy(self) -> Float[Arr, ""]:
        """Share of correct target tokens. 0 without target tokens."""
        return self.correct_tokens / jnp.maximum(self.target_tokens, 1)

    @property
    def exact_match(self) -> Float[Arr, ""]:
        """Share of exactly matched subtasks. 0 without subtasks."""
        return self.exact_matches / jnp.maximum(self.subtasks, 1)


def loss(
    model: EncoderDecoder,
    params: Params,
    batch: Batch | PackedBatch,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, ""], LossMetrics]:
    """Mean loss in nats per target token. Start token and prompt do not contribute.

    label_smoothing: the probability mass spread evenly over the vocabulary (Szegedy et al.,
    arXiv 1512.00567, section 7). z_loss: weight of the squared log-normaliser of the softmax
    (Chowdhery et al., arXiv 2204.02311, section 5).

    To average losses or gradients of several batches, weight each by its
    `LossMetrics.target_tokens`.
    """
    scores = target_scores(model, params, batch, dropout_key)
    cross_entropy = -scores.log_probability
    objective = cross_entropy
    if label_smoothing:
        even = scores.normaliser - scores.mean_logit
        objective = (1 - label_smoothing) * objective + label_smoothing * even
    if z_loss:
        objective = objective + z_loss * jnp.square(scores.normaliser)

    correct, present = correct_subtasks(batch, scores.is_highest)
    metrics = LossMetrics(
        loss_sum=cross_entropy.sum(),
        correct_tokens=scores.is_highest.sum(dtype=jnp.int32),
        exact_matches=jnp.sum(correct & present, dtype=jnp.int32),
        target_tokens=jnp.sum(jnp.asarray(batch.target_mask), dtype=jnp.int32),
        subtasks=jnp.sum(present, dtype=jnp.int32),
    )
    return objective.sum() / jnp.maximum(metrics.target_tokens, 1), metrics


def prompt_in_encoder(
    examples: Sequence[TokenizedExample], leading: Sequence[int] = ()
) -> list[TokenizedExample]:
    """The PiE baseline: every (document, prompt) pair as a document with one empty prompt.

    A new document is the prompt tokens followed by the document tokens. The order is by document,
    then by prompt. leading: special tokens at the start of a text, such as BART's `<s>`. They
    remain first in documents that have them.
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

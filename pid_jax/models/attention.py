"""Attention: one softmax over everything that a query sees.

`attend` is the attention of decoders. Encoders attend to one source, the document, with
`document_attention`, or with `local_attention` where a family has local attention. Both are from
`pid_jax.backends`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends import decode_attention
from pid_jax.backends.document_attention import document_attention as document_attention
from pid_jax.backends.dropout import AttentionDropout as AttentionDropout
from pid_jax.backends.local_attention import GlobalKeys as GlobalKeys
from pid_jax.backends.local_attention import local_attention as local_attention
from pid_jax.backends.packed_attention import Source as Source
from pid_jax.backends.packed_attention import packed_attention
from pid_jax.backends.prompt_attention import prompt_attention
from pid_jax.backends.scores import MASKED_SCORE as MASKED_SCORE
from pid_jax.backends.scores import adjust_scores
from pid_jax.backends.scores import is_within as is_within
from pid_jax.backends.scores import soft_cap as soft_cap
from pid_jax.backends.settings import backend_settings
from pid_jax.models.protocol import KeyValue


def attend(
    query: Float[Array, "B H L K"],
    sources: Sequence[Source],
    scale: float = 1.0,
    dropout: AttentionDropout | None = None,
    soft_cap: float | None = None,
    is_step: bool = False,
) -> Float[Array, "B H L K"]:
    """softmax(scale Q K^T + bias) V, with a single softmax, in float32, over all sources.

    A decoder attends at once to its key/value cache and to the new tokens, and copies neither.
    On some backends there is a gradient only within `jax.vmap` over prompts. dropout: in training,
    None otherwise. is_step: whether this is a decode step, which has no dropout and no gradient.
    Some backends have kernels for it.
    """
    if is_step:
        fused = decode_attention.step_attention(query, sources, scale, soft_cap)
        if fused is not None:
            return fused
    packs = backend_settings().packs_prompts and dropout is None
    if packs and (query.shape[2] == 1 or len(sources) > 1):
        return packed_attention(query, sources, scale, soft_cap)
    plain = functools.partial(_attend, scale=scale, soft_cap=soft_cap)
    if stores_scores() or (dropout is None and not packs):
        return plain(query, sources, dropout)
    return prompt_attention(query, sources, plain, scale, soft_cap, dropout)


def attend_without_prompts(
    query: Float[Array, "B H L K"], sources: Sequence[Source], dropout: AttentionDropout | None
) -> Float[Array, "B H L K"]:
    """`attend` for an encoder: outside of the `jax.vmap` over prompts, which its kernels need."""
    return jax.vmap(lambda of_one: attend(of_one, sources, dropout=dropout))(query[None])[0]


def _attend(
    query: Float[Array, "B H L K"],
    sources: Sequence[Source],
    dropout: AttentionDropout | None,
    *,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "B H L K"]:
    """`attend` as in papers."""
    weights = attention_weights(query, sources, scale, soft_cap)
    if dropout is not None:
        weights = dropout.apply(weights)
    outputs, start = [], 0
    for source in sources:
        stop = start + source.layer.length()
        outputs.append(source.layer.weighted(weights[..., start:stop]))
        start = stop
    return sum(outputs[1:], start=outputs[0])


def attention_weights(
    query: Float[Array, "B H L K"],
    sources: Sequence[Source],
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> Float[Array, "B H L all"]:
    """softmax(scale Q K^T + bias), over the tokens of all sources in turn."""
    scores = []
    for source in sources:
        seen = None if source.mask is None else source.mask[:, None]
        products = source.layer.scores(query)
        scores.append(adjust_scores(products, scale, soft_cap, source.bias, seen))
    joined = scores[0] if len(scores) == 1 else jnp.concatenate(scores, axis=-1)
    return jax.nn.softmax(joined, axis=-1).astype(query.dtype)


def stores_scores() -> bool:
    """Whether training stores the scores of attention, and encoders train with `attend`."""
    return backend_settings().document_kernel is None


def causal_mask(
    token_mask: Bool[Array, "B L"], segments: Int[Array, "B L"] | None = None
) -> Bool[Array, "B L L"]:
    """True where a new token may look at another: at itself and at tokens before it.

    token_mask: False for padding, which nothing looks at. segments: of each token, where a row has
    several sequences (`pid_jax.data.packing`). A token looks at its own segment only. Padding then
    looks at padding, so that every token has something to look at.
    """
    length = token_mask.shape[1]
    before = jnp.tril(jnp.ones((1, length, length), bool))
    if segments is None:
        return before & token_mask[:, None, :]
    return before & (segments[:, :, None] == segments[:, None, :])


def split_heads(x: Float[Array, "B tokens width"], heads: int) -> Float[Array, "B heads tokens K"]:
    """A projection's output, head by head."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "B heads tokens K"]) -> Float[Array, "B tokens width"]:
    """The inverse of `split_heads`."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


def own_tokens(
    past: Source | None, present: Source, slots: Int[Array, "#B L"]
) -> tuple[list[Source], KeyValue]:
    """What a decoder's self-attention reads, and what the decoder returns for its caller to write.

    Two sources, unless the backend writes the present to the cache first: then one, the whole
    cache, which is also returned. slots: of the present tokens.
    """
    if past is None:
        return [present], present.layer
    if not backend_settings().writes_first or slots.shape != (1, 1):
        return [past, present], present.layer
    layer = past.layer.write(present.layer, slots[0, 0])
    seen = jnp.arange(layer.length()) == slots[0, 0]
    return [Source(layer, seen if past.mask is None else past.mask | seen, past.bias)], layer


def key_value(
    key: Float[Array, "B G S K"], value: Float[Array, "B G S K"], *, cached: bool = False
) -> KeyValue:
    """Keys and values in the backend's layout for documents, or for the decoder's cache."""
    settings = backend_settings()
    layout = settings.cache_layout if cached else settings.document_layout
    layout = layout.for_heads(key.shape[1])
    return KeyValue(layout.from_heads(key), layout.from_heads(value), layout)

"""T5Gemma's modules, most of them T5Gemma 2's too.

Gemma Team, arXiv 2408.00118 (Gemma 2: norms before and after each part, windows in every other
layer, soft-capping) and 2503.19786 (Gemma 3: norms of queries and keys instead of capping); Zhang
et al., arXiv 2504.06225 (T5Gemma).
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pid_jax.models.attention import (
    Source,
    attend,
    causal_mask,
    document_attention,
    is_within,
    key_value,
    own_tokens,
    soft_cap,
    split_heads,
    stores_scores,
)
from pid_jax.models.encoder_decoder import EncoderDecoderModel
from pid_jax.models.layer_stack import apply_layers
from pid_jax.models.layers import (
    ACTIVATIONS,
    Dense,
    RMSNorm,
    TokenEmbeddings,
    WeightDropout,
    normed_feed_forward,
)
from pid_jax.models.positions import Rotation, rotate
from pid_jax.models.protocol import KeyValue, Past
from pid_jax.models.rematerialisation import NONE, rematerialised
from pid_jax.models.t5gemma.configuration import (
    FULL,
    SLIDING,
    DropoutRates,
    GemmaStackConfig,
    T5GemmaConfig,
)


def norm(config: GemmaStackConfig, dtype: DTypeLike) -> RMSNorm:
    """A norm as every Gemma has it."""
    return RMSNorm(config.rms_norm_eps, dtype, around_one=True)


def embedding(config: GemmaStackConfig, dtype: DTypeLike) -> TokenEmbeddings:
    """The table of `embed`."""
    return TokenEmbeddings(config.vocab_size, config.hidden_size, config.initializer_range, dtype)


def embed(table: TokenEmbeddings, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """The scaled embeddings of tokens."""
    embedded = table(tokens)
    return embedded * jnp.asarray(table.features**0.5, embedded.dtype)  # rounded as weights are


class GemmaAttention(nn.Module):
    """Attention whose queries share keys and values in groups, with rotary positions."""

    config: GemmaStackConfig
    rotation: Rotation
    rates: DropoutRates
    dtype: DTypeLike
    query_key_norms: bool = False

    def setup(self) -> None:
        config = self.config
        width = config.num_attention_heads * config.head_dim
        source_width = config.num_key_value_heads * config.head_dim
        into, stddev = ("embed", "heads"), config.initializer_range
        self.query = Dense(width, into, stddev, self.dtype)
        self.key = Dense(source_width, into, stddev, self.dtype)
        self.value = Dense(source_width, into, stddev, self.dtype)
        self.output = Dense(config.hidden_size, ("heads", "embed"), stddev, self.dtype)
        if self.query_key_norms:
            self.query_norm = norm(config, self.dtype)
            self.key_norm = norm(config, self.dtype)
        self.dropout = WeightDropout(self.rates.attention)

    def project(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "#B S"] | None = None,
        *,
        cached: bool = False,
    ) -> KeyValue:
        """Keys and values of what is attended to. Where it has positions, keys are rotated.

        cached: for the decoder's cache.
        """
        heads = self.config.num_key_value_heads
        key = split_heads(self.key(x), heads)
        if self.query_key_norms:
            key = self.key_norm(key)
        if positions is not None:
            key = rotate(key, positions, self.rotation)
        return key_value(key, split_heads(self.value(x), heads), cached=cached)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "#B L"] | None,
        sources: list[Source],
        deterministic: bool,
        is_step: bool = False,
    ) -> Float[Array, "B L D"]:
        """What the queries of x see in the sources. positions: None where none are rotated.

        is_step: see `attend`.
        """
        attended = attend(
            self._queries(x, positions),
            sources,
            scale=self._scale,
            dropout=self.dropout.drawn(deterministic),
            soft_cap=self.config.attn_logit_softcapping,
            is_step=is_step,
        )
        return self.output(attended, by_head=True, training=not deterministic)

    def of_documents(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "#B S"],
        mask: Bool[Array, "B S"],
        reach: tuple[int, int] | None,
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        """Self-attention of an encoder. On a backend that stores scores, without dropout."""
        attended = document_attention(
            self._queries(x, positions),
            self.project(x, positions),
            mask,
            scale=self._scale,
            soft_cap=self.config.attn_logit_softcapping,
            reach=reach,
            dropout=self.dropout.drawn(deterministic),
        )
        return self.output(attended, by_head=True, training=not deterministic)

    @property
    def _scale(self) -> float:
        return float(self.config.query_pre_attn_scalar**-0.5)

    def _queries(
        self, x: Float[Array, "B L D"], positions: Int[Array, "#B L"] | None
    ) -> Float[Array, "B H L K"]:
        query = split_heads(self.query(x), self.config.num_attention_heads)
        if self.query_key_norms:
            query = self.query_norm(query)
        return query if positions is None else rotate(query, positions, self.rotation)


class GemmaFeedForward(nn.Module):
    """A feed-forward whose first product is gated by a second one."""

    config: GemmaStackConfig
    rates: DropoutRates
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        into, stddev = ("embed", "mlp"), config.initializer_range
        self.gate = Dense(config.intermediate_size, into, stddev, self.dtype)
        self.up = Dense(config.intermediate_size, into, stddev, self.dtype)
        self.down = Dense(config.hidden_size, ("mlp", "embed"), stddev, self.dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def __call__(
        self, x: Float[Array, "*batch D"], deterministic: bool
    ) -> Float[Array, "*batch D"]:
        x = ACTIVATIONS[self.config.hidden_activation](self.gate(x)) * self.up(x)
        return self.down(self.dropout(x, deterministic))


class GemmaEncoderLayer(nn.Module):
    """Self-attention and feed-forward, each between two norms and added to what it read."""

    config: GemmaStackConfig
    rotation: Rotation
    reach: tuple[int, int] | None
    """How many tokens before and after itself a token sees. None for all."""
    rates: DropoutRates
    dtype: DTypeLike
    query_key_norms: bool = False

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        self.self_attention_norm = norm(config, dtype)
        self.self_attention = GemmaAttention(
            config, self.rotation, self.rates, dtype, self.query_key_norms
        )
        self.self_attention_post_norm = norm(config, dtype)
        self.feed_forward_norm = norm(config, dtype)
        self.feed_forward = GemmaFeedForward(config, self.rates, dtype)
        self.feed_forward_post_norm = norm(config, dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        positions = jnp.arange(x.shape[1])[None]
        normed = self.self_attention_norm(x)
        if deterministic or not stores_scores():
            attended = self.self_attention.of_documents(
                normed, positions, mask, self.reach, deterministic
            )
        else:
            seen = mask[:, None, :]
            if self.reach is not None:
                seen = seen & is_within(self.reach, positions[:, None, :] - positions[:, :, None])
            source = Source(self.self_attention.project(normed, positions), seen)
            attended = self.self_attention(normed, positions, [source], deterministic)
        x = x + self.dropout(self.self_attention_post_norm(attended), deterministic)
        output = normed_feed_forward(self, x, deterministic)
        return x + self.dropout(self.feed_forward_post_norm(output), deterministic)


class GemmaEncoder(nn.Module):
    """Reads the scaled embeddings of documents."""

    config: GemmaStackConfig
    reach: tuple[int, int]
    """In layers that see a window: how many tokens before and after itself a token sees."""
    rates: DropoutRates
    dtype: DTypeLike
    query_key_norms: bool = False
    remat: str = NONE
    """The policy of rematerialisation, see `pid_jax.models.rematerialisation`."""
    scan_layers: bool = False
    """Whether programs scan over layers, see `pid_jax.models.layer_stack`."""

    def setup(self) -> None:
        config = self.config
        layer = rematerialised(GemmaEncoderLayer, self.remat)
        self.layers = [
            layer(
                config,
                config.rotation(i),
                self.reach if kind == SLIDING else None,
                self.rates,
                self.dtype,
                self.query_key_norms,
            )
            for i, kind in enumerate(config.layer_types)
        ]
        self.final_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        x = self.dropout(x, deterministic)
        arguments = [(mask,)] * len(self.layers)
        x, _ = apply_layers(self, x, arguments, deterministic, scan=self.scan_layers)
        return self.dropout(self.final_norm(x), deterministic)


class Visible(NamedTuple):
    """Which of a prompt's own tokens new ones see, in one type of layer."""

    present: Bool[Array, "B L L"]
    past: Bool[Array, "B L M"] | Bool[Array, "B 1 M"] | None

    slots: Int[Array, "#B L"]
    """Those of the new tokens."""

    def sources(self, present: KeyValue, past: KeyValue | None) -> tuple[list[Source], KeyValue]:
        """See `own_tokens`: the past, if there is one, and the new tokens."""
        remembered = None if past is None else Source(past, self.past)
        return own_tokens(remembered, Source(present, self.present), self.slots)


def visible(
    token_mask: Bool[Array, "B L"],
    slots: Int[Array, "#B L"],
    past: Past | None,
    window: int,
    segments: Int[Array, "B L"] | None = None,
) -> dict[str, Visible]:
    """By the type of layer. In a window a token sees itself and `window - 1` before it."""
    reach = (window - 1, 0)
    present = causal_mask(token_mask, segments)
    in_window = is_within(reach, slots[:, None, :] - slots[:, :, None])
    if past is None:
        return {
            FULL: Visible(present, None, slots),
            SLIDING: Visible(present & in_window, None, slots),
        }
    remembered = past.mask[:, None, :]
    past_in_window = is_within(reach, jnp.arange(past.mask.shape[1]) - slots[:, :, None])
    return {
        FULL: Visible(present, remembered, slots),
        SLIDING: Visible(present & in_window, remembered & past_in_window, slots),
    }


class GemmaDecoder(nn.Module):
    """Reads prompts and targets, in layers of a family's own type."""

    layer_type: type[nn.Module]
    config: GemmaStackConfig
    rates: DropoutRates
    dtype: DTypeLike
    remat: str = NONE
    """The policy of rematerialisation, see `pid_jax.models.rematerialisation`."""
    scan_layers: bool = False
    """Whether programs scan over layers, see `pid_jax.models.layer_stack`."""

    def setup(self) -> None:
        config = self.config
        layer = rematerialised(self.layer_type, self.remat)
        self.layers = [
            layer(config, config.rotation(i), self.rates, self.dtype)
            for i in range(config.num_hidden_layers)
        ]
        self.final_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def project_cross_attention(
        self, encoder_output: Float[Array, "B S D"]
    ) -> tuple[KeyValue, ...]:
        return tuple(layer.project_document(encoder_output) for layer in self.layers)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        token_mask: Bool[Array, "B L"],
        positions: Int[Array, "B L"],
        slots: Int[Array, "#B L"],
        cross_attention: tuple[KeyValue, ...],
        document_mask: Bool[Array, "B S"],
        past: Past | None,
        deterministic: bool,
        segments: Int[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], tuple[KeyValue, ...]]:
        seen = visible(token_mask, slots, past, self.config.sliding_window, segments)
        x = self.dropout(x, deterministic)
        document_mask = document_mask[:, None, :]
        arguments = []
        for i, kind in enumerate(self.config.layer_types):
            document = Source(cross_attention[i], document_mask)
            remembered = None if past is None else past.layers[i]
            arguments.append((positions, seen[kind], remembered, document))
        scan = self.scan_layers and past is None
        x, present = apply_layers(self, x, arguments, deterministic, scan=scan)
        return self.dropout(self.final_norm(x), deterministic), present


def bounded(logits: Float[Array, "*batch V"], config: GemmaStackConfig) -> Float[Array, "*batch V"]:
    """Logits after soft-capping, if the configuration has any."""
    bound = config.final_logit_softcapping
    return logits if bound is None else soft_cap(logits, bound)


class T5GemmaDecoderLayer(nn.Module):
    """Self-attention, cross-attention to the document, feed-forward, each between two norms."""

    config: GemmaStackConfig
    rotation: Rotation
    rates: DropoutRates
    dtype: DTypeLike

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        self.self_attention_norm = norm(config, dtype)
        self.self_attention = GemmaAttention(config, self.rotation, self.rates, dtype)
        self.self_attention_post_norm = norm(config, dtype)
        self.cross_attention_norm = norm(config, dtype)
        self.cross_attention = GemmaAttention(config, self.rotation, self.rates, dtype)
        self.cross_attention_post_norm = norm(config, dtype)
        self.feed_forward_norm = norm(config, dtype)
        self.feed_forward = GemmaFeedForward(config, self.rates, dtype)
        self.feed_forward_post_norm = norm(config, dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def project_document(self, encoder_output: Float[Array, "B S _"]) -> KeyValue:
        """Keys, without positions, and values. The encoder may be of another width."""
        return self.cross_attention.project(encoder_output)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "B L"],
        seen: Visible,
        past: KeyValue | None,
        document: Source,
        deterministic: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue]:
        normed = self.self_attention_norm(x)
        is_step = deterministic and past is not None
        present = self.self_attention.project(normed, positions, cached=True)
        sources, present = seen.sources(present, past)
        attended = self.self_attention(normed, positions, sources, deterministic, is_step)
        x = x + self.dropout(self.self_attention_post_norm(attended), deterministic)
        normed = self.cross_attention_norm(x)
        attended = self.cross_attention(normed, None, [document], deterministic, is_step)
        x = x + self.dropout(self.cross_attention_post_norm(attended), deterministic)
        output = normed_feed_forward(self, x, deterministic)
        return x + self.dropout(self.feed_forward_post_norm(output), deterministic), present


class T5Gemma(EncoderDecoderModel):
    """The model of T5Gemma."""

    config: T5GemmaConfig
    table: ClassVar[str] = "decoder_embedding"

    def setup(self) -> None:
        config = self.config
        window = config.encoder.sliding_window
        self.encoder_embedding = embedding(config.encoder, self.dtype)
        self.encoder = GemmaEncoder(
            config.encoder,
            (window, window),
            config.rates,
            self.dtype,
            remat=self.remat,
            scan_layers=self.scan_layers,
        )
        self.decoder_embedding = embedding(config.decoder, self.dtype)
        self.decoder = GemmaDecoder(
            T5GemmaDecoderLayer,
            config.decoder,
            config.rates,
            self.dtype,
            self.remat,
            self.scan_layers,
        )
        if not config.tie_word_embeddings:
            self.lm_head = self.head(config.decoder.initializer_range * config.vocab_size**-0.5)

    def embed_documents(self, documents: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return embed(self.encoder_embedding, documents)

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        return embed(self.decoder_embedding, tokens)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        return bounded(super().logits(hidden), self.config.decoder)

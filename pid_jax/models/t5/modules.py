"""T5's modules: attention, feed-forward, layers, encoder, decoder and the whole model.

Raffel et al., arXiv 1910.10683 (T5); Shazeer, arXiv 2002.05202 (the gated feed-forward of 1.1);
Xue et al., arXiv 2010.11934 (mT5) and 2105.13626 (ByT5); Chung et al., arXiv 2304.09151 (UMT5,
whose every layer has a relative position bias of its own).
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends.decode_attention import (
    Scoring,
    attend_to_cache,
    attend_to_document,
    computes_norm,
    fits,
    fits_cache,
)
from pid_jax.models.attention import (
    Source,
    attend,
    causal_mask,
    document_attention,
    key_value,
    merge_heads,
    own_tokens,
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
from pid_jax.models.positions import RelativePositionBias
from pid_jax.models.protocol import KeyValue, Past
from pid_jax.models.rematerialisation import NONE, rematerialised
from pid_jax.models.t5.configuration import T5Config, T5LikeConfig


class T5Attention(nn.Module):
    """Multi-head attention without biases and without scaling of the scores."""

    config: T5LikeConfig
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        width = config.num_heads * config.d_kv
        factor = config.initializer_factor
        into = ("embed", "heads")
        query_stddev = factor * (config.d_model * config.d_kv) ** -0.5
        stddev = factor * config.d_model**-0.5
        self.query = Dense(width, into, query_stddev, self.dtype)
        self.key = Dense(width, into, stddev, self.dtype)
        self.value = Dense(width, into, stddev, self.dtype)
        # Without parameters, unless decoding has those of `backends.projections`.
        self.query_key_value = Dense(3 * width, into, stddev, self.dtype)
        self.output = Dense(config.d_model, ("heads", "embed"), factor * width**-0.5, self.dtype)
        self.dropout = WeightDropout(config.dropout_rate, broadcast_dims=(-2,))

    def project(self, x: Float[Array, "B S D"], *, cached: bool = False) -> KeyValue:
        """Keys and values of what is attended to. cached: for the decoder's cache."""
        heads = self.config.num_heads
        key, value = split_heads(self.key(x), heads), split_heads(self.value(x), heads)
        return key_value(key, value, cached=cached)

    def __call__(
        self, x: Float[Array, "B L D"], sources: list[Source], deterministic: bool
    ) -> Float[Array, "B L D"]:
        return self._attend(self.query(x), sources, deterministic)

    def _attend(
        self, query: Float[Array, "B L width"], sources: list[Source], deterministic: bool
    ) -> Float[Array, "B L D"]:
        attended = attend(
            split_heads(query, self.config.num_heads),
            sources,
            dropout=self.dropout.drawn(deterministic),
        )
        return self.output(attended, by_head=True, training=not deterministic)

    def to_itself(
        self,
        x: Float[Array, "B L D"],
        norm: RMSNorm,
        past: Source | None,
        mask: Bool[Array, "B L L"],
        bias: Float[Array, "#B H L L"],
        slots: Int[Array, "#B L"],
        deterministic: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue]:
        """A decoder's self-attention to `past` and to x, and what `own_tokens` returns.

        norm: what is applied to x first. mask, bias: among the tokens of x. slots: of x.
        """
        if norm.has_scale:
            normed = norm(x)
            present = self.project(normed, cached=True)
            sources, present = own_tokens(past, Source(present, mask, bias), slots)
            return self(normed, sources, deterministic), present
        heads = self.config.num_heads
        if past is not None and fits_cache(x.shape[1], past, bias):
            x, inputs, epsilon = _before_kernel(x, norm)
            joined = self.query_key_value(x)[:, 0].reshape(len(x), 3 * heads, -1)
            attended, present = attend_to_cache(
                (joined, joined, joined),
                (0, heads, 2 * heads),
                past,
                mask,
                bias,
                Scoring(epsilon=epsilon),
                None if inputs is None else inputs[:, 0],
                heads,
            )
            return self.output(attended.reshape(len(x), 1, -1)), present
        query, key, value = jnp.split(self.query_key_value(norm(x)), 3, axis=-1)
        present = key_value(split_heads(key, heads), split_heads(value, heads), cached=True)
        sources, present = own_tokens(past, Source(present, mask, bias), slots)
        return self._attend(query, sources, deterministic), present

    def to_document(
        self, x: Float[Array, "B L D"], norm: RMSNorm, document: Source, deterministic: bool
    ) -> Float[Array, "B L D"]:
        """A decoder's cross-attention. norm: what is applied to x first."""
        if norm.has_scale or document.mask is None or not fits(document.layer):
            return self(norm(x), [document], deterministic)
        x, inputs, epsilon = _before_kernel(x, norm)
        query = self.query(x).reshape(*x.shape[:2], self.config.num_heads, -1)
        scoring = Scoring(epsilon=epsilon)
        attended = attend_to_document(query, document.layer, document.mask[:, 0], scoring, inputs)
        return self.output(attended.reshape(*x.shape[:2], -1))

    def of_documents(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], bias: Any, deterministic: bool
    ) -> Float[Array, "B S D"]:
        """Self-attention of an encoder.

        bias: `Float["1 H S S"]` if `trains_with_scores`, else `Float["H distances"]`. A family
        with another attention in its encoder overrides this and says what it takes.
        """
        if trains_with_scores(deterministic):
            return self(x, [Source(self.project(x), mask[:, None, :], bias)], deterministic)
        query = split_heads(self.query(x), self.config.num_heads)
        attended = document_attention(
            query, self.project(x), mask, bias, dropout=self.dropout.drawn(deterministic)
        )
        return self.output(merge_heads(attended))


def trains_with_scores(deterministic: bool) -> bool:
    """Whether an encoder's attention is that of decoders, in training."""
    return not deterministic and stores_scores()


def _before_kernel(
    x: Float[Array, "B L D"], norm: RMSNorm
) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"] | None, float | None]:
    """What the projections before an attention kernel read, and what the kernel does of the norm.

    If the kernel applies the norm: x twice, and the norm's epsilon.
    """
    if computes_norm(x.shape[-1]):
        return x, x, norm.epsilon
    return norm(x), None, None


class T5FeedForward(nn.Module):
    """T5's feed-forward, gated in 1.1 and later."""

    config: T5LikeConfig
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        into = config.initializer_factor * config.d_model**-0.5
        if config.is_gated_act:
            self.wi_0 = Dense(config.d_ff, ("embed", "mlp"), into, self.dtype)
            self.wi_1 = Dense(config.d_ff, ("embed", "mlp"), into, self.dtype)
        else:
            self.wi = Dense(config.d_ff, ("embed", "mlp"), into, self.dtype)
        out = config.initializer_factor * config.d_ff**-0.5
        self.wo = Dense(config.d_model, ("mlp", "embed"), out, self.dtype)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self, x: Float[Array, "*batch D"], deterministic: bool
    ) -> Float[Array, "*batch D"]:
        activate = ACTIVATIONS[self.config.dense_act_fn]
        x = (
            activate(self.wi_0(x)) * self.wi_1(x)
            if self.config.is_gated_act
            else activate(self.wi(x))
        )
        return self.wo(self.dropout(x, deterministic))


def norm(config: T5LikeConfig, dtype: DTypeLike) -> RMSNorm:
    """The normalisation before every part of a layer, and at the end."""
    return RMSNorm(config.layer_norm_epsilon, dtype)


def relative_position_bias(
    config: T5LikeConfig, *, bidirectional: bool, starts_nearby: bool = True
) -> RelativePositionBias:
    """A table of the sizes that the configuration names."""
    return RelativePositionBias(
        config.num_heads,
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
        bidirectional,
        config.initializer_factor * config.d_model**-0.5,
        starts_nearby,
    )


class T5EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each added to what it read after normalising it."""

    config: T5LikeConfig
    dtype: DTypeLike
    attention: type[T5Attention] = T5Attention

    def setup(self) -> None:
        self.self_attention_norm = norm(self.config, self.dtype)
        self.self_attention = self.attention(self.config, self.dtype)
        self.feed_forward_norm = norm(self.config, self.dtype)
        self.feed_forward = T5FeedForward(self.config, self.dtype)
        self.dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        bias: Any,
        deterministic: bool,
    ) -> Float[Array, "B S D"]:
        normed = self.self_attention_norm(x)
        attended = self.self_attention.of_documents(normed, mask, bias, deterministic)
        x = x + self.dropout(attended, deterministic)
        output = normed_feed_forward(self, x, deterministic)
        return x + self.dropout(output, deterministic)


class T5Encoder(nn.Module):
    """Reads the embeddings of documents."""

    config: T5Config
    dtype: DTypeLike
    remat: str = NONE
    """The policy of rematerialisation, see `pid_jax.models.rematerialisation`."""
    scan_layers: bool = False
    """Whether programs scan over layers, see `pid_jax.models.layer_stack`."""

    def setup(self) -> None:
        config = self.config
        layer = rematerialised(T5EncoderLayer, self.remat)
        self.layers = [layer(config, self.dtype) for _ in range(config.num_layers)]
        biases = config.num_layers if config.bias_in_every_layer else 1
        self.relative_position_bias = [
            relative_position_bias(config, bidirectional=True) for _ in range(biases)
        ]
        self.final_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self, x: Float[Array, "B S D"], document_mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        length = x.shape[1]
        slots = jnp.arange(length)[None]
        biases = [
            bias(slots, slots) if trains_with_scores(deterministic) else bias.by_distance(length)
            for bias in self.relative_position_bias
        ]
        x = self.dropout(x, deterministic)
        arguments = [(document_mask, biases[i % len(biases)]) for i in range(len(self.layers))]
        x, _ = apply_layers(self, x, arguments, deterministic, scan=self.scan_layers)
        return self.dropout(self.final_norm(x), deterministic)


class T5DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the document, feed-forward."""

    config: T5LikeConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.self_attention_norm = norm(self.config, self.dtype)
        self.self_attention = T5Attention(self.config, self.dtype)
        self.cross_attention_norm = norm(self.config, self.dtype)
        self.cross_attention = T5Attention(self.config, self.dtype)
        self.feed_forward_norm = norm(self.config, self.dtype)
        self.feed_forward = T5FeedForward(self.config, self.dtype)
        self.dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        present_mask: Bool[Array, "B L L"],
        present_bias: Float[Array, "#B H L L"],
        slots: Int[Array, "#B L"],
        past: Source | None,
        document: Source,
        deterministic: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue]:
        attended, present = self.self_attention.to_itself(
            x, self.self_attention_norm, past, present_mask, present_bias, slots, deterministic
        )
        x = x + self.dropout(attended, deterministic)
        attended = self.cross_attention.to_document(
            x, self.cross_attention_norm, document, deterministic
        )
        x = x + self.dropout(attended, deterministic)
        output = normed_feed_forward(self, x, deterministic)
        return x + self.dropout(output, deterministic), present


class T5Decoder(nn.Module):
    """Reads prompts and targets, and attends to the document."""

    config: T5LikeConfig
    dtype: DTypeLike
    remat: str = NONE
    """The policy of rematerialisation, see `pid_jax.models.rematerialisation`."""
    scan_layers: bool = False
    """Whether programs scan over layers, see `pid_jax.models.layer_stack`."""

    def setup(self) -> None:
        config = self.config
        layer = rematerialised(T5DecoderLayer, self.remat)
        self.layers = [layer(config, self.dtype) for _ in range(config.num_decoder_layers)]
        biases = config.num_decoder_layers if config.bias_in_every_layer else 1
        self.relative_position_bias = [
            relative_position_bias(config, bidirectional=False) for _ in range(biases)
        ]
        self.final_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def project_cross_attention(
        self, encoder_output: Float[Array, "B S D"]
    ) -> tuple[KeyValue, ...]:
        return tuple(layer.cross_attention.project(encoder_output) for layer in self.layers)

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
        del positions  # Distances alone are known, and those are differences of slots.
        mask = causal_mask(token_mask, segments)
        biases = [bias(slots, slots) for bias in self.relative_position_bias]
        if past is not None:
            past_mask = past.mask[:, None, :]
            past_slots = jnp.arange(past.mask.shape[1])[None]
            past_biases = [bias(slots, past_slots) for bias in self.relative_position_bias]
        x = self.dropout(x, deterministic)
        arguments = []
        document_mask = document_mask[:, None, :]
        for i in range(len(self.layers)):
            shared = i % len(biases)
            remembered = None
            if past is not None:
                remembered = Source(past.layers[i], past_mask, past_biases[shared])
            document = Source(cross_attention[i], document_mask)
            arguments.append((mask, biases[shared], slots, remembered, document))
        scan = self.scan_layers and past is None
        x, present = apply_layers(self, x, arguments, deterministic, scan=scan)
        return self.dropout(self.final_norm(x), deterministic), present


class T5Like(EncoderDecoderModel):
    """The model of T5 and LongT5 but for its encoder."""

    config: T5LikeConfig
    encoder_type: ClassVar[type[nn.Module]]
    joins_projections: ClassVar[bool] = True

    def setup(self) -> None:
        config = self.config
        self.shared = TokenEmbeddings(
            config.vocab_size, config.d_model, config.initializer_factor, self.dtype
        )
        self.encoder = self.encoder_type(
            config, self.dtype, remat=self.remat, scan_layers=self.scan_layers
        )
        self.decoder = T5Decoder(config, self.dtype, self.remat, self.scan_layers)
        if not config.tie_word_embeddings:
            self.lm_head = self.head(config.initializer_factor * config.d_model**-0.5)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        return super().logits(hidden)


class T5(T5Like):
    """The model of T5, mT5 and UMT5."""

    config: T5Config
    encoder_type: ClassVar[type[nn.Module]] = T5Encoder

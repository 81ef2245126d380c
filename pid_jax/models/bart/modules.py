"""BART's modules: attention, feed-forward, layers, encoder, decoder and the whole model.

Lewis et al., arXiv 1910.13461 (BART); Liu et al., arXiv 2001.08210 (mBART); Tang et al., arXiv
2008.00401 (mBART-50). What differs between them and PEGASUS is in their configurations.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

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
from pid_jax.models.bart.configuration import BartLikeConfig
from pid_jax.models.encoder_decoder import EncoderDecoderModel
from pid_jax.models.layer_stack import apply_layers
from pid_jax.models.layers import ACTIVATIONS, Dense, LayerNorm, TokenEmbeddings, WeightDropout
from pid_jax.models.positions import LearnedPositions, SinusoidalPositions
from pid_jax.models.protocol import KeyValue, Past
from pid_jax.models.rematerialisation import NONE, products_stored, rematerialised


class BartAttention(nn.Module):
    """Multi-head attention with biases (Vaswani et al., arXiv 1706.03762, section 3.2)."""

    width: int
    heads: int
    stddev: float
    dropout_rate: float
    dtype: DTypeLike

    def setup(self) -> None:
        def dense(*axes: str) -> Dense:
            return Dense(self.width, axes, self.stddev, self.dtype, bias=True)

        self.query = dense("embed", "heads")
        self.key = dense("embed", "heads")
        self.value = dense("embed", "heads")
        self.output = dense("heads", "embed")
        self.dropout = WeightDropout(self.dropout_rate)

    def project(self, x: Float[Array, "B S D"], *, cached: bool = False) -> KeyValue:
        """Keys and values of what is attended to. cached: for the decoder's cache."""
        key, value = split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads)
        return key_value(key, value, cached=cached)

    def scaled_query(self, x: Float[Array, "B L D"]) -> Float[Array, "B H L K"]:
        """Queries whose products with keys are the scores."""
        scale = (self.width // self.heads) ** -0.5
        return split_heads(self.query(x) * scale, self.heads)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        sources: list[Source],
        deterministic: bool,
        is_step: bool = False,
    ) -> Float[Array, "B L D"]:
        attended = attend(
            self.scaled_query(x),
            sources,
            dropout=self.dropout.drawn(deterministic),
            is_step=is_step,
        )
        return self.output(attended, by_head=True, training=not deterministic)

    def of_documents(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        """Self-attention of an encoder."""
        if stores_scores() and not deterministic and self.dropout_rate:
            return self(x, [Source(self.project(x), mask[:, None, :])], deterministic)
        dropout = self.dropout.drawn(deterministic or not self.dropout_rate)
        attended = document_attention(self.scaled_query(x), self.project(x), mask, dropout=dropout)
        return self.output(merge_heads(attended))


class BartFeedForward(nn.Module):
    """Two matrix products with biases, an activation between them."""

    width: int
    config: BartLikeConfig
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        into, out = ("embed", "mlp"), ("mlp", "embed")
        self.wi = Dense(self.width, into, config.init_std, self.dtype, bias=True)
        self.wo = Dense(config.d_model, out, config.init_std, self.dtype, bias=True)
        self.dropout = nn.Dropout(config.activation_dropout)

    def __call__(
        self, x: Float[Array, "*batch D"], deterministic: bool
    ) -> Float[Array, "*batch D"]:
        x = ACTIVATIONS[self.config.activation_function](self.wi(x))
        return self.wo(self.dropout(x, deterministic))


class BartLayer(nn.Module):
    """The residual connections and norms of a layer, of the encoder or the decoder."""

    config: BartLikeConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.dropout = nn.Dropout(self.config.dropout_rate)

    def read(self, norm: LayerNorm, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """What a part reads."""
        return norm(x) if self.config.norm_first else x

    def add(
        self,
        norm: LayerNorm,
        x: Float[Array, "*batch D"],
        part: Float[Array, "*batch D"],
        deterministic: bool,
    ) -> Float[Array, "*batch D"]:
        """The residual connection: what the next part reads."""
        x = x + self.dropout(part, deterministic)
        return x if self.config.norm_first else norm(x)

    @products_stored
    def apply_feed_forward(
        self, x: Float[Array, "*batch D"], deterministic: bool
    ) -> Float[Array, "*batch D"]:
        """The feed-forward, applied to what it reads of x."""
        return self.feed_forward(self.read(self.feed_forward_norm, x), deterministic)

    def attention(self, heads: int) -> BartAttention:
        config = self.config
        dropout = config.attention_dropout
        return BartAttention(config.d_model, heads, config.init_std, dropout, self.dtype)


def unless_dropped(
    dropped: Bool[Array, ""] | None, x: Float[Array, "*batch D"], after: Float[Array, "*batch D"]
) -> Float[Array, "*batch D"]:
    """The output of a layer, or its input x if a training step skips the layer."""
    return after if dropped is None else jnp.where(dropped, x, after)


class BartEncoderLayer(BartLayer):
    """Self-attention and feed-forward."""

    def setup(self) -> None:
        super().setup()
        self.self_attention_norm = LayerNorm(dtype=self.dtype)
        self.self_attention = self.attention(self.config.encoder_attention_heads)
        self.feed_forward_norm = LayerNorm(dtype=self.dtype)
        self.feed_forward = BartFeedForward(self.config.encoder_ffn_dim, self.config, self.dtype)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        dropped: Bool[Array, ""] | None,
        deterministic: bool,
    ) -> Float[Array, "B S D"]:
        before = x
        read = self.read(self.self_attention_norm, x)
        attended = self.self_attention.of_documents(read, mask, deterministic)
        x = self.add(self.self_attention_norm, x, attended, deterministic)
        output = self.apply_feed_forward(x, deterministic)
        x = self.add(self.feed_forward_norm, x, output, deterministic)
        return unless_dropped(dropped, before, x)


class BartDecoderLayer(BartLayer):
    """Self-attention, cross-attention to the document, feed-forward."""

    def setup(self) -> None:
        super().setup()
        heads = self.config.decoder_attention_heads
        self.self_attention_norm = LayerNorm(dtype=self.dtype)
        self.self_attention = self.attention(heads)
        self.cross_attention_norm = LayerNorm(dtype=self.dtype)
        self.cross_attention = self.attention(heads)
        self.feed_forward_norm = LayerNorm(dtype=self.dtype)
        self.feed_forward = BartFeedForward(self.config.decoder_ffn_dim, self.config, self.dtype)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L L"],
        slots: Int[Array, "#B L"],
        past: Source | None,
        document: Source,
        dropped: Bool[Array, ""] | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue]:
        before = x
        read = self.read(self.self_attention_norm, x)
        is_step = deterministic and past is not None
        present = self.self_attention.project(read, cached=True)
        sources, present = own_tokens(past, Source(present, mask), slots)
        attended = self.self_attention(read, sources, deterministic, is_step)
        x = self.add(self.self_attention_norm, x, attended, deterministic)
        read = self.read(self.cross_attention_norm, x)
        attended = self.cross_attention(read, [document], deterministic, is_step)
        x = self.add(self.cross_attention_norm, x, attended, deterministic)
        output = self.apply_feed_forward(x, deterministic)
        x = self.add(self.feed_forward_norm, x, output, deterministic)
        return unless_dropped(dropped, before, x), present


class BartStack(nn.Module):
    """What is before and after the layers of an encoder or a decoder."""

    config: BartLikeConfig
    dtype: DTypeLike
    remat: str = NONE
    """The policy of rematerialisation, see `pid_jax.models.rematerialisation`."""
    scan_layers: bool = False
    """Whether programs scan over layers, see `pid_jax.models.layer_stack`."""

    def set_up(self, positions: int) -> None:
        """Makes the modules of both stacks. positions: the most tokens there may be."""
        config = self.config
        if config.sinusoidal:
            self.positions = SinusoidalPositions(positions, config.d_model, self.dtype)
        else:
            self.positions = LearnedPositions(
                positions, config.d_model, config.init_std, config.position_offset, self.dtype
            )
        if config.embedding_norm:
            self.embedding_norm = LayerNorm(dtype=self.dtype)
        if config.final_norm:
            self.final_norm = LayerNorm(dtype=self.dtype)
        self.dropout = nn.Dropout(config.dropout_rate)

    def enter(
        self, x: Float[Array, "*batch D"], positions: Int[Array, "*batch"], deterministic: bool
    ) -> Float[Array, "*batch D"]:
        """What the first layer reads."""
        x = x + self.positions(positions)
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        return self.dropout(x, deterministic)

    def leave(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """The stack's output, from the last layer's."""
        return self.final_norm(x) if self.config.final_norm else x

    def drops(self, rate: float, deterministic: bool) -> list[Bool[Array, ""] | None]:
        """For each layer whether this call skips it (Fan et al., arXiv 1909.11556)."""
        if deterministic or not rate:
            return [None] * len(self.layers)
        return [jax.random.bernoulli(self.make_rng("dropout"), rate) for _ in self.layers]


class BartEncoder(BartStack):
    """Reads documents. Positions count the tokens of a document, without padding."""

    def setup(self) -> None:
        config = self.config
        self.set_up(config.max_document_tokens)
        layer = rematerialised(BartEncoderLayer, self.remat)
        self.layers = [layer(config, self.dtype) for _ in range(config.encoder_layers)]

    def __call__(
        self, x: Float[Array, "B S D"], document_mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        positions = jnp.maximum(jnp.cumsum(document_mask, axis=-1, dtype=jnp.int32) - 1, 0)
        x = self.enter(x, positions, deterministic)
        drops = self.drops(self.config.encoder_layerdrop, deterministic)
        arguments = [(document_mask, dropped) for dropped in drops]
        x, _ = apply_layers(self, x, arguments, deterministic, scan=self.scan_layers)
        return self.leave(x)


class BartDecoder(BartStack):
    """Reads prompts and targets, and attends to the document."""

    def setup(self) -> None:
        config = self.config
        self.set_up(config.max_decoder_tokens)
        layer = rematerialised(BartDecoderLayer, self.remat)
        self.layers = [layer(config, self.dtype) for _ in range(config.decoder_layers)]

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
        mask = causal_mask(token_mask, segments)
        x = self.enter(x, positions, deterministic)
        past_mask = None if past is None else past.mask[:, None, :]
        document_mask = document_mask[:, None, :]
        arguments = []
        for i, dropped in enumerate(self.drops(self.config.decoder_layerdrop, deterministic)):
            remembered = None if past is None else Source(past.layers[i], past_mask)
            document = Source(cross_attention[i], document_mask)
            arguments.append((mask, slots, remembered, document, dropped))
        scan = self.scan_layers and past is None
        x, present = apply_layers(self, x, arguments, deterministic, scan=scan)
        return self.leave(x), present


class BartLike(EncoderDecoderModel):
    """The model of BART, mBART and PEGASUS, and LED's but for its encoder."""

    config: BartLikeConfig
    encoder_type: ClassVar[type[nn.Module]] = BartEncoder
    """A family with an encoder of its own names it here."""

    def setup(self) -> None:
        config = self.config
        self.shared = TokenEmbeddings(
            config.vocab_size, config.d_model, config.init_std, self.dtype
        )
        self.encoder = self.encoder_type(config, self.dtype, self.remat, self.scan_layers)
        self.decoder = BartDecoder(config, self.dtype, self.remat, self.scan_layers)
        if not config.tie_word_embeddings:
            self.lm_head = self.head(config.init_std)
        self.final_logits_bias = self.param(
            "final_logits_bias",
            nn.with_logical_partitioning(nn.initializers.zeros, (None, "vocab")),
            (1, config.vocab_size),
            jnp.float32,
        )

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        return self.shared(tokens) * self.config.embedding_scale

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        # A buffer of the checkpoint that training does not change.
        bias = jax.lax.stop_gradient(self.final_logits_bias[0].astype(jnp.float32))
        return super().logits(hidden) + bias

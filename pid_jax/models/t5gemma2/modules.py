"""T5Gemma 2's modules: the decoder's layer and the whole model. All else is T5Gemma's.

Zhang et al., arXiv 2512.14856. A decoder layer has one attention for its own tokens and the
document's, in one softmax. Its queries are rotated for both. Of the keys only the decoder's own
are, so that what is seen of a document depends on the position of the query.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pid_jax.models.attention import Source
from pid_jax.models.encoder_decoder import EncoderDecoderModel
from pid_jax.models.layers import normed_feed_forward
from pid_jax.models.positions import Rotation
from pid_jax.models.protocol import KeyValue
from pid_jax.models.t5gemma.configuration import DropoutRates, GemmaStackConfig
from pid_jax.models.t5gemma.modules import (
    GemmaAttention,
    GemmaDecoder,
    GemmaEncoder,
    GemmaFeedForward,
    Visible,
    bounded,
    embed,
    embedding,
    norm,
)
from pid_jax.models.t5gemma2.configuration import T5Gemma2Config


class T5Gemma2DecoderLayer(nn.Module):
    """Attention to earlier tokens and the document at once, and feed-forward."""

    config: GemmaStackConfig
    rotation: Rotation
    rates: DropoutRates
    dtype: DTypeLike

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        self.attention_norm = norm(config, dtype)
        self.attention = GemmaAttention(
            config, self.rotation, self.rates, dtype, query_key_norms=True
        )
        self.attention_post_norm = norm(config, dtype)
        self.feed_forward_norm = norm(config, dtype)
        self.feed_forward = GemmaFeedForward(config, self.rates, dtype)
        self.feed_forward_post_norm = norm(config, dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def project_document(self, encoder_output: Float[Array, "B S D"]) -> KeyValue:
        """The document's keys, which have no position, and values."""
        return self.attention.project(encoder_output)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "B L"],
        seen: Visible,
        past: KeyValue | None,
        document: Source,
        deterministic: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue]:
        normed = self.attention_norm(x)
        present = self.attention.project(normed, positions, cached=True)
        sources, present = seen.sources(present, past)
        attended = self.attention(normed, positions, [*sources, document], deterministic)
        x = x + self.dropout(self.attention_post_norm(attended), deterministic)
        output = normed_feed_forward(self, x, deterministic)
        return x + self.dropout(self.feed_forward_post_norm(output), deterministic), present


class T5Gemma2(EncoderDecoderModel):
    """The model of T5Gemma 2."""

    config: T5Gemma2Config

    def setup(self) -> None:
        config = self.config
        window = config.encoder.sliding_window
        self.shared = embedding(config.decoder, self.dtype)
        self.eoi_embedding = self.param(
            "eoi_embedding",
            nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
            (config.decoder.hidden_size,),
            jnp.float32,
        )
        self.encoder = GemmaEncoder(
            config.encoder,
            ((window + 1) // 2 - 1, window // 2),
            config.rates,
            self.dtype,
            query_key_norms=True,
            remat=self.remat,
            scan_layers=self.scan_layers,
        )
        self.decoder = GemmaDecoder(
            T5Gemma2DecoderLayer,
            config.decoder,
            config.rates,
            self.dtype,
            self.remat,
            self.scan_layers,
        )

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The token that ends an image has an embedding beside the table, which is not scaled."""
        embedded = embed(self.shared, tokens)
        ends_image = (tokens == self.config.eoi_token_index)[..., None]
        return jnp.where(ends_image, self.eoi_embedding.astype(embedded.dtype), embedded)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        return bounded(super().logits(hidden), self.config.decoder)

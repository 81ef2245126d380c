"""The methods that decoding and training call, for models of an encoder and a decoder.

`pid_jax.models.protocol.EncoderDecoder` says what each of them means.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends.int8 import is_quantized, quantize
from pid_jax.backends.matmul import (
    matmul,
    with_decoder_transposes,
    with_transposes,
)
from pid_jax.backends.projections import with_dtype, with_joined_projections
from pid_jax.backends.settings import backend_settings
from pid_jax.models.layers import Dense
from pid_jax.models.lora import Lora, adapting
from pid_jax.models.protocol import KeyValue, Params, Past
from pid_jax.models.rematerialisation import NONE


class EncoderDecoderModel(nn.Module):
    """A model whose `setup` makes `encoder`, `decoder` and a table of token embeddings.

    `setup` makes `lm_head`, too, unless `config.tie_word_embeddings`.
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    """Of activations. Norms, softmax and logits are always float32."""
    remat: str = NONE
    """The policy of rematerialisation, see `pid_jax.models.rematerialisation`."""
    scan_layers: bool = False
    """Whether programs scan over layers, see `pid_jax.models.layer_stack`."""
    lora: Lora | None = None
    """The adapter of the kernels, see `pid_jax.models.lora`."""

    table: ClassVar[str] = "shared"
    """The attribute with the embeddings that a tied head multiplies with."""
    joins_projections: ClassVar[bool] = False
    """Whether the decoder's attention reads joined kernels (`backends.projections`)."""

    @nn.nowrap
    def init(self, *args: Any, **kwargs: Any) -> Any:
        """New variables, those of the adapter included."""
        with adapting(self.lora):
            return super().init(*args, **kwargs)

    @nn.nowrap
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """What a method computes with the given variables, the products of the adapter included."""
        with adapting(self.lora):
            return super().apply(*args, **kwargs)

    def head(self, stddev: float) -> Dense:
        """A head of its own."""
        return Dense(
            self.config.vocab_size,
            ("embed", "vocab"),
            stddev,
            self.dtype,
            output_dtype=jnp.float32,
        )

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The embeddings of tokens."""
        embedded: Array = getattr(self, self.table)(tokens)
        return embedded

    def embed_documents(self, documents: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """What the encoder reads."""
        return self.embed(documents)

    def encode(
        self,
        documents: Int[Array, "B S"],
        document_mask: Bool[Array, "B S"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        return self.encoder(self.embed_documents(documents), document_mask, deterministic)

    def project_cross_attention(
        self, encoder_output: Float[Array, "B S D"]
    ) -> tuple[KeyValue, ...]:
        return self.decoder.project_cross_attention(encoder_output)

    def decode(
        self,
        tokens: Int[Array, "B L"],
        token_mask: Bool[Array, "B L"],
        positions: Int[Array, "B L"],
        slots: Int[Array, "#B L"],
        cross_attention: tuple[KeyValue, ...],
        document_mask: Bool[Array, "B S"],
        past: Past | None = None,
        segments: Int[Array, "B L"] | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B L D"], tuple[KeyValue, ...]]:
        return self.decoder(
            self.embed(tokens),
            token_mask,
            positions,
            slots,
            cross_attention,
            document_mask,
            past,
            deterministic,
            segments,
        )

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        if not self.config.tie_word_embeddings:
            return self.lm_head(hidden)
        table = getattr(self, self.table)
        if self.has_variable("params", "transposed_head"):
            transposed = self.get_variable("params", "transposed_head").astype(self.dtype)
            return matmul(hidden, table.embedding.T.astype(self.dtype), transposed)
        logits: Array = table.logits(hidden)
        return logits

    def head_params(self, params: Params) -> Params:
        """The head's kernel, and the arrays that `setup` itself makes."""
        own = self.table if self.config.tie_word_embeddings else "lm_head"
        return {
            name: value
            for name, value in params.items()
            if name == own or not isinstance(value, Mapping)
        }

    def int8_params(self, params: Params) -> Params:
        """What the backend decodes with, in 8 bits (`backends.int8`).

        In families that can, kernels are joined first (`backends.projections`), where the backend
        has joined kernels. All other arrays have the model's dtype. Arrays of NumPy stay on the
        host.
        """
        if backend_settings().joined_projections and self.joins_projections:
            decoder = with_joined_projections(params["decoder"], jnp.float32)
            params = {**params, "decoder": decoder}
        return quantize(params, self.dtype)

    def decoding_params(self, params: Params) -> Params:
        """What the backend decodes with.

        Either transposes beside the kernels that a decode step reads (`backends.matmul.matmul`),
        or the kernels in the model's dtype and, in families that can, joined ones
        (`backends.projections`). Parameters in 8 bits (`int8_params`) stay as they are.
        """
        if is_quantized(params):
            return params
        settings = backend_settings()
        if settings.casts_params:
            changed = with_dtype(params, self.dtype)
            if settings.joined_projections and self.joins_projections:
                # From the original parameters: the product with a norm's scale is rounded once.
                joined = with_joined_projections(params["decoder"], self.dtype)
                changed["decoder"] = with_dtype(joined, self.dtype)
            table = {"embedding": jnp.asarray(params[self.table]["embedding"]).astype(self.dtype)}
            return {**changed, self.table: table}
        if not settings.transposes:
            return params
        changed = {**params, "decoder": with_decoder_transposes(params["decoder"])}
        if self.config.tie_word_embeddings:
            changed["transposed_head"] = params[self.table]["embedding"]  # the same array: no copy
        else:
            changed["lm_head"] = with_transposes(params["lm_head"])
        return changed

"""T5Gemma: Gemma 2 made into an encoder-decoder (Zhang et al., arXiv 2504.06225).

Encoder and decoder may differ in size, down to the width of their layers.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pid_jax.errors import UserError
from pid_jax.models import config_reading, gemma_layers
from pid_jax.models.attention import Source
from pid_jax.models.gemma_layers import (
    Attention,
    Decoder,
    DropoutRates,
    Encoder,
    FeedForward,
    StackConfig,
    Visible,
)
from pid_jax.models.positions import Rotation
from pid_jax.models.protocol import About, Family, KeyValue, TensorPlace
from pid_jax.models.two_stacks import TwoStacks

_HEAD = "lm_head.out_proj.weight"


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig:
    """The values of a T5Gemma `config.json` that shape the computation, by their names there."""

    encoder: StackConfig
    decoder: StackConfig
    model_type: str = "t5gemma"
    dropout_rate: float = 0.0
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    other_eos_token_ids: tuple[int, ...] = ()
    decoder_start_token_id: int = 2
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    max_document_tokens: ClassVar[None] = None
    max_decoder_tokens: ClassVar[None] = None

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def rates(self) -> DropoutRates:
        return DropoutRates(self.dropout_rate, self.attention_dropout)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "T5GemmaConfig":
        """Reads a `config.json`. Raises `UserError` for a missing or unsupported value."""
        stacks = {}
        for key in ("encoder", "decoder"):
            part = config_reading.section(config, key)
            rope = part.get("rope_scaling") or part.get("rope_parameters")
            rotation = gemma_layers.read_rotation(
                rope, f"{key}.rope_parameters", part.get("rope_theta", 10000.0)
            )
            defaults = {
                "vocab_size": config.get("vocab_size", 256000),
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            }
            stacks[key] = gemma_layers.read_stack(
                part, key, defaults, (rotation, rotation), sliding_pattern=2
            )
        vocabularies = stacks["encoder"].vocab_size, stacks["decoder"].vocab_size
        if vocabularies[0] != vocabularies[1]:
            raise UserError(
                'config.json: "encoder.vocab_size" and "decoder.vocab_size" must agree, but are '
                f"{vocabularies[0]} and {vocabularies[1]}"
            )
        others = {key: value for key, value in config.items() if key not in stacks}
        others |= gemma_layers.special_token_ids(config, config_reading.section(config, "decoder"))
        encoder_decoder = config.get("is_encoder_decoder", True)
        config_reading.check_supported("is_encoder_decoder", encoder_decoder, [True])
        return config_reading.read_fields(cls, others, {**stacks})

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        values = config_reading.write_fields(self)
        special = {
            "pad_token_id": self.pad_token_id,
            "eos_token_id": values["eos_token_id"],
            "bos_token_id": self.decoder_start_token_id,
        }
        stacks = {
            key: {
                **stack.to_hf(),
                **special,
                "model_type": "t5_gemma_module",
                "is_decoder": key == "decoder",
                "rope_parameters": gemma_layers.write_rotation(stack.full_rotation),
            }
            for key, stack in (("encoder", self.encoder), ("decoder", self.decoder))
        }
        stacks["decoder"]["cross_attention_hidden_size"] = self.encoder.hidden_size
        return {
            **values,
            **special,
            **stacks,
            "architectures": ["T5GemmaForConditionalGeneration"],
            "is_encoder_decoder": True,
            "vocab_size": self.vocab_size,
            "initializer_range": self.decoder.initializer_range,
        }

    def with_tensors(self, names: Collection[str]) -> "T5GemmaConfig":
        """The configuration that fits a checkpoint holding these tensors.

        A checkpoint with a head of its own is untied, whatever its `config.json` says.
        """
        return dataclasses.replace(self, tie_word_embeddings=_HEAD not in names)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the document, feed-forward, each between two norms."""

    config: StackConfig
    rotation: Rotation
    rates: DropoutRates
    dtype: DTypeLike

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        self.self_attention_norm = gemma_layers.norm(config, dtype)
        self.self_attention = Attention(config, self.rotation, self.rates, dtype)
        self.self_attention_post_norm = gemma_layers.norm(config, dtype)
        self.cross_attention_norm = gemma_layers.norm(config, dtype)
        self.cross_attention = Attention(config, self.rotation, self.rates, dtype)
        self.cross_attention_post_norm = gemma_layers.norm(config, dtype)
        self.feed_forward_norm = gemma_layers.norm(config, dtype)
        self.feed_forward = FeedForward(config, self.rates, dtype)
        self.feed_forward_post_norm = gemma_layers.norm(config, dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def project_document(self, encoder_output: Float[Array, "B S E"]) -> KeyValue:
        """The document's keys, which have no position, and values."""
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
        present = self.self_attention.project(normed, positions)
        sources = seen.sources(present, past)
        attended = self.self_attention(normed, positions, sources, deterministic)
        x = x + self.dropout(self.self_attention_post_norm(attended), deterministic)
        normed = self.cross_attention_norm(x)
        attended = self.cross_attention(normed, None, [document], deterministic)
        x = x + self.dropout(self.cross_attention_post_norm(attended), deterministic)
        forwarded = self.feed_forward(self.feed_forward_norm(x), deterministic)
        return x + self.dropout(self.feed_forward_post_norm(forwarded), deterministic), present


class T5Gemma(TwoStacks):
    """The family's module."""

    config: T5GemmaConfig
    table: ClassVar[str] = "decoder_embedding"

    def setup(self) -> None:
        config = self.config
        window = config.encoder.sliding_window
        self.encoder_embedding = gemma_layers.embedding(config.encoder, self.dtype)
        self.encoder = Encoder(config.encoder, (window, window), config.rates, self.dtype)
        self.decoder_embedding = gemma_layers.embedding(config.decoder, self.dtype)
        self.decoder = Decoder(DecoderLayer, config.decoder, config.rates, self.dtype)
        if not config.tie_word_embeddings:
            self.lm_head = self.head(config.decoder.initializer_range * config.vocab_size**-0.5)

    def embed_documents(self, documents: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return gemma_layers.embed(self.encoder_embedding, documents)

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        return gemma_layers.embed(self.decoder_embedding, tokens)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        return gemma_layers.bounded(super().logits(hidden), self.config.decoder)


def _tensors(config: T5GemmaConfig) -> dict[str, TensorPlace]:
    places = {
        f"model.{stack}.embed_tokens.weight": TensorPlace((f"{stack}_embedding", "embedding"))
        for stack in ("encoder", "decoder")
    }
    if not config.tie_word_embeddings:
        places[_HEAD] = TensorPlace(("lm_head", "kernel"), transposed=True)
    attentions = {"self_attn": "self_attention"}
    places |= gemma_layers.stack_tensors(config.encoder, "encoder", attentions)
    attentions["cross_attn"] = "cross_attention"
    places |= gemma_layers.stack_tensors(config.decoder, "decoder", attentions)
    return places


_9B = {
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}

FAMILY = Family(
    about=About(
        "T5Gemma",
        "all sizes, balanced or not",
        "t5gemma-9b-9b",
        {"model_type": "t5gemma", "encoder": _9B, "decoder": _9B},
    ),
    model_types=("t5gemma",),
    config_from_hf=T5GemmaConfig.from_hf,
    module=T5Gemma,
    tensors=_tensors,
    aliases={_HEAD: "model.decoder.embed_tokens.weight"},
    ignored=frozenset(),
    prefix="model.",
)

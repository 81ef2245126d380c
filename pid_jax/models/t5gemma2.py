"""T5Gemma 2: Gemma 3 made into an encoder-decoder (Zhang et al., arXiv 2512.14856). Text only.

A decoder layer has one attention for its own tokens and the document's, in one softmax. Its
queries are rotated for both; of the keys only the decoder's own are, so that what is seen of a
document depends on the position of the query.

Published checkpoints also hold a vision tower. What texts need of them does not depend on it, so
its tensors are left where they are and texts are read as they should be; what is refused are
tokens that stand for images.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pid_jax.errors import UserError
from pid_jax.models import config_reading, gemma_layers
from pid_jax.models.attention import Source
from pid_jax.models.gemma_layers import (
    FULL,
    SLIDING,
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

_NO_IMAGES = (
    "which stands for an image: of T5Gemma 2 only the text part is supported, not its vision tower"
)
_NO_VISION_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 256,
    "patch_size": 16,
    "vision_use_head": False,
}
"""transformers always builds a vision tower, if only from noise: then a small one."""


@dataclasses.dataclass(frozen=True)
class T5Gemma2Config:
    """The values of a T5Gemma 2 `config.json` that shape the computation, by their names there."""

    encoder: StackConfig
    decoder: StackConfig
    model_type: str = "t5gemma2"
    dropout_rate: float = 0.0
    attention_dropout: float = 0.0
    pad_token_id: int = 0
    eos_token_id: int = 1
    other_eos_token_ids: tuple[int, ...] = ()
    decoder_start_token_id: int = 2
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    boi_token_index: int = 255999
    eoi_token_index: int = 256000
    image_token_index: int = 256001
    tie_word_embeddings: ClassVar[bool] = True
    max_document_tokens: ClassVar[None] = None
    max_decoder_tokens: ClassVar[None] = None

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def rates(self) -> DropoutRates:
        return DropoutRates(self.dropout_rate, self.attention_dropout)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "T5Gemma2Config":
        """Reads a `config.json`. Raises `UserError` for a missing or unsupported value."""
        of_encoder = config_reading.section(config, "encoder")
        parts = {
            "encoder": config_reading.section(of_encoder, "text_config", "encoder."),
            "decoder": config_reading.section(config, "decoder"),
        }
        stacks = {}
        for (key, part), place in zip(
            parts.items(), ("encoder.text_config", "decoder"), strict=True
        ):
            defaults = {
                "vocab_size": config.get("vocab_size", 262208),
                "max_position_embeddings": 131072,
            }
            pattern = part.get("sliding_window_pattern", 6)
            read = gemma_layers.read_stack(part, place, defaults, _rotations(part, place), pattern)
            # transformers caps no attention of this family, whatever config.json says.
            stacks[key] = dataclasses.replace(read, attn_logit_softcapping=None)
        for name in ("vocab_size", "hidden_size"):
            sizes = [getattr(stack, name) for stack in stacks.values()]
            if sizes[0] != sizes[1]:
                raise UserError(
                    f'config.json: "encoder.text_config.{name}" and "decoder.{name}" must agree, '
                    f"but are {sizes[0]} and {sizes[1]}"
                )
        for name in ("is_encoder_decoder", "tie_word_embeddings"):
            given = config.get(name)
            config_reading.check_supported(name, True if given is None else given, [True])
        others = {key: value for key, value in config.items() if key not in stacks}
        others |= {name: of_encoder.get(name) for name in ("boi_token_index", "eoi_token_index")}
        others |= gemma_layers.special_token_ids(config, parts["decoder"])
        return config_reading.read_fields(cls, others, {**stacks})

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model, blind."""
        values = config_reading.write_fields(self)
        special = {
            "pad_token_id": self.pad_token_id,
            "eos_token_id": values["eos_token_id"],
            "bos_token_id": self.decoder_start_token_id,
        }
        text, decoder = (
            {
                **stack.to_hf(),
                **special,
                "model_type": f"t5gemma2_{part}",
                "rope_parameters": {
                    FULL: gemma_layers.write_rotation(stack.full_rotation),
                    SLIDING: gemma_layers.write_rotation(stack.sliding_rotation),
                },
            }
            for part, stack in (("text", self.encoder), ("decoder", self.decoder))
        )
        encoder = {
            "model_type": "t5gemma2_encoder",
            "text_config": text,
            "vision_config": _NO_VISION_TOWER,
            "boi_token_index": self.boi_token_index,
            "eoi_token_index": self.eoi_token_index,
            "image_token_index": self.image_token_index,
        }
        return {
            **values,
            **special,
            "architectures": ["T5Gemma2ForConditionalGeneration"],
            "encoder": encoder,
            "decoder": decoder,
            "initializer_range": self.decoder.initializer_range,
            "is_encoder_decoder": True,
            "tie_word_embeddings": True,
            "vocab_size": self.vocab_size,
        }

    def with_tensors(self, names: Collection[str]) -> "T5Gemma2Config":
        """The same: all of these models have one table of embeddings."""
        del names
        return self


def _rotations(part: Mapping[str, Any], key: str) -> tuple[Rotation, Rotation]:
    """Those of full and of sliding layers, as transformers 5 writes them or as 4 did."""
    written = config_reading.section(part, "rope_parameters", f"{key}.")
    written = written or {FULL: {"rope_type": "default"}}  # what scales may not change
    scaled = config_reading.section(part, "rope_scaling", f"{key}.")
    full = {**config_reading.section(written, FULL, f"{key}.rope_parameters."), **scaled}
    return (
        gemma_layers.read_rotation(
            full, f"{key}.rope_parameters.{FULL}", part.get("rope_theta", 1e6)
        ),
        gemma_layers.read_rotation(
            written.get(SLIDING),
            f"{key}.rope_parameters.{SLIDING}",
            part.get("rope_local_base_freq", 1e4),
        ),
    )


class DecoderLayer(nn.Module):
    """Attention to earlier tokens and the document at once, and feed-forward."""

    config: StackConfig
    rotation: Rotation
    rates: DropoutRates
    dtype: DTypeLike

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        self.attention_norm = gemma_layers.norm(config, dtype)
        self.attention = Attention(config, self.rotation, self.rates, dtype, query_key_norms=True)
        self.attention_post_norm = gemma_layers.norm(config, dtype)
        self.feed_forward_norm = gemma_layers.norm(config, dtype)
        self.feed_forward = FeedForward(config, self.rates, dtype)
        self.feed_forward_post_norm = gemma_layers.norm(config, dtype)
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
        present = self.attention.project(normed, positions)
        sources = [*seen.sources(present, past), document]
        attended = self.attention(normed, positions, sources, deterministic)
        x = x + self.dropout(self.attention_post_norm(attended), deterministic)
        forwarded = self.feed_forward(self.feed_forward_norm(x), deterministic)
        return x + self.dropout(self.feed_forward_post_norm(forwarded), deterministic), present


class T5Gemma2(TwoStacks):
    """The family's module."""

    config: T5Gemma2Config

    def setup(self) -> None:
        config = self.config
        window = config.encoder.sliding_window
        self.shared = gemma_layers.embedding(config.decoder, self.dtype)
        self.eoi_embedding = self.param(
            "eoi_embedding",
            nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
            (config.decoder.hidden_size,),
            jnp.float32,
        )
        self.encoder = Encoder(
            config.encoder,
            ((window + 1) // 2 - 1, window // 2),
            config.rates,
            self.dtype,
            query_key_norms=True,
        )
        self.decoder = Decoder(DecoderLayer, config.decoder, config.rates, self.dtype)

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The token that ends an image has an embedding beside the table, which is not scaled."""
        embedded = gemma_layers.embed(self.shared, tokens)
        ends_image = (tokens == self.config.eoi_token_index)[..., None]
        return jnp.where(ends_image, self.eoi_embedding.astype(embedded.dtype), embedded)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        return gemma_layers.bounded(super().logits(hidden), self.config.decoder)


def _tensors(config: T5Gemma2Config) -> dict[str, TensorPlace]:
    return {
        "model.encoder.embed_tokens.weight": TensorPlace(("shared", "embedding")),
        "model.encoder.embed_tokens.eoi_embedding": TensorPlace(("eoi_embedding",)),
        **gemma_layers.stack_tensors(
            config.encoder, "encoder", {"self_attn": "self_attention"}, query_key_norms=True
        ),
        **gemma_layers.stack_tensors(
            config.decoder, "decoder", {"self_attn": "attention"}, query_key_norms=True
        ),
    }


def _rename(name: str) -> str | None:
    """transformers' modules have the encoder's layers in a `text_model`, its files have not."""
    if "encoder.vision_tower." in name or "encoder.multi_modal_projector." in name:
        return None
    return name.replace("encoder.text_model.", "encoder.", 1)


def _unreadable_tokens(config: T5Gemma2Config) -> dict[int, str]:
    return {config.boi_token_index: _NO_IMAGES, config.image_token_index: _NO_IMAGES}


_4B = {
    "vocab_size": 262144,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}

FAMILY = Family(
    about=About(
        "T5Gemma 2",
        "text only: a vision tower is left out, and images are refused",
        "t5gemma-2-4b-4b",
        {"model_type": "t5gemma2", "encoder": {"text_config": _4B}, "decoder": _4B},
    ),
    model_types=("t5gemma2",),
    config_from_hf=T5Gemma2Config.from_hf,
    module=T5Gemma2,
    tensors=_tensors,
    aliases={
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.eoi_embedding": "model.encoder.embed_tokens.eoi_embedding",
        "lm_head.out_proj.weight": "model.encoder.embed_tokens.weight",
    },
    ignored=frozenset(),
    prefix="model.",
    rename=_rename,
    unreadable_tokens=_unreadable_tokens,
)

"""LED: BART whose encoder attends within windows, and to a few global tokens.

Beltagy et al., arXiv 2004.05150 (Longformer-Encoder-Decoder, section 7). The decoder is BART's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pid_jax.errors import UserError
from pid_jax.models import bart_layers
from pid_jax.models.attention import Source, attend, merge_heads, split_heads, split_source_heads
from pid_jax.models.layers import Dense
from pid_jax.models.local_attention import Dropout, Everywhere, attend_nearby
from pid_jax.models.protocol import About, KeyValue, TensorPlace


@dataclasses.dataclass(frozen=True)
class LEDConfig(bart_layers.BartLikeConfig):
    """An LED `config.json`, which may say how many tokens are global."""

    model_type: str = "led"
    max_document_tokens: int = 16384
    attention_window: tuple[int, ...] = ()
    """Per encoder layer, how many neighbours a token sees, half of them on either side."""
    global_attention_tokens: int = 1
    """The tokens at a document's start that see all others and are seen by all; 0 for none.

    A key of this package alone: transformers takes a `global_attention_mask` with each call, and
    without one no token is global. The first token is what LED was fine-tuned with.
    """

    architecture: ClassVar[str] = "LEDForConditionalGeneration"
    norm_first: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = False
    position_offset: ClassVar[int] = 0
    KEYS: ClassVar[Mapping[str, str]] = {
        "dropout_rate": "dropout",
        "max_document_tokens": "max_encoder_position_embeddings",
        "max_decoder_tokens": "max_decoder_position_embeddings",
    }
    ALIASES: ClassVar[Mapping[str, str]] = {
        **bart_layers.BartLikeConfig.ALIASES,
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "init_std",
    }

    @property
    def embedding_scale(self) -> float:
        """LED never scales, whatever its `config.json` has of BART's."""
        return 1.0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LEDConfig":
        """Reads a `config.json`; raises `UserError` for what is not supported, by its key."""
        rest = {key: value for key, value in config.items() if key != "attention_window"}
        read = super().from_hf(rest)
        assert isinstance(read, cls)
        windows = config.get("attention_window")
        if windows is None:
            windows = 512
        if isinstance(windows, int):
            windows = [windows] * read.encoder_layers
        if (
            not isinstance(windows, list | tuple)
            or len(windows) != read.encoder_layers
            or not all(type(width) is int and width > 0 and width % 2 == 0 for width in windows)
        ):
            raise UserError(
                'config.json: "attention_window" must be an even number above 0, or a list of one '
                f'for each of "encoder_layers": {read.encoder_layers}, but is {windows!r}'
            )
        if read.global_attention_tokens < 0:
            raise UserError(
                'config.json: "global_attention_tokens" must be at least 0, but is '
                f"{read.global_attention_tokens}"
            )
        return dataclasses.replace(read, attention_window=tuple(windows))


class WindowAttention(bart_layers.Attention):
    """Attention within a window; global tokens attend by projections of their own."""

    radius: int
    global_tokens: int

    def setup(self) -> None:
        super().setup()
        axes = ("embed", "heads")
        self.query_global = Dense(self.width, axes, self.stddev, self.dtype, bias=True)
        self.key_global = Dense(self.width, axes, self.stddev, self.dtype, bias=True)
        self.value_global = Dense(self.width, axes, self.stddev, self.dtype, bias=True)

    def of_documents(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        length = x.shape[1]
        count = min(self.global_tokens, length)
        layer = self.project(x)
        everywhere = None
        if count:
            seen = KeyValue(layer.key[..., :count], layer.value[..., :count])
            everywhere = Everywhere(seen, mask[:, :count])
        dropout = None
        if not deterministic and self.dropout_rate:
            key = self.make_rng("dropout")
            dropout = Dropout(key, self.dropout_rate, same_for_queries=False)
        nearby = attend_nearby(
            self.scaled_query(x),
            layer,
            mask & (jnp.arange(length) >= count),  # each is seen once
            self.radius,
            everywhere=everywhere,
            dropout=dropout,
        )
        all_tokens = KeyValue(
            split_source_heads(self.key_global(x), self.heads),
            split_source_heads(self.value_global(x), self.heads),
        )
        scale = (self.width // self.heads) ** -0.5
        attended = attend(
            split_heads(self.query_global(x[:, :count]) * scale, self.heads),
            [Source(all_tokens, mask[:, None, :])],
            dropout=lambda weights: self.dropout(weights, deterministic),
        )
        return self.output(merge_heads(jnp.concatenate([attended, nearby[:, :, count:]], axis=2)))


class EncoderLayer(bart_layers.EncoderLayer):
    config: LEDConfig
    radius: int

    def attention(self, heads: int) -> WindowAttention:
        config = self.config
        return WindowAttention(
            config.d_model,
            heads,
            config.init_std,
            config.attention_dropout,
            self.dtype,
            self.radius,
            config.global_attention_tokens,
        )


class Encoder(bart_layers.Encoder):
    config: LEDConfig

    def setup(self) -> None:
        config = self.config
        self.set_up(config.max_document_tokens)
        self.layers = [
            EncoderLayer(config, self.dtype, window // 2) for window in config.attention_window
        ]


class LED(bart_layers.BartLike):
    """The family's module."""

    config: LEDConfig
    encoder_type: ClassVar[type[nn.Module]] = Encoder


def _tensors(config: LEDConfig) -> dict[str, TensorPlace]:
    places = bart_layers.tensors(config, "led.")
    for i in range(config.encoder_layers):
        attention = f"led.encoder.layers.{i}.self_attn"
        path = ("encoder", f"layers_{i}", "self_attention")
        for name in bart_layers.attention_tensors(attention, *path):
            del places[name]
        for name in ("query", "key", "value"):
            for projection in (name, f"{name}_global"):
                theirs = f"{attention}.longformer_self_attn.{projection}"
                places |= bart_layers.linear_tensors(theirs, *path, projection)
        places |= bart_layers.linear_tensors(f"{attention}.output", *path, "output")
    return places


_ABOUT = About(
    "LED",
    "LED; the first token is global",
    "led-large-16384",
    {
        "model_type": "led",
        "vocab_size": 50265,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "attention_window": 1024,
        "max_encoder_position_embeddings": 16384,
        "max_decoder_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
    },
)

FAMILY = dataclasses.replace(
    bart_layers.family(LEDConfig, _ABOUT, "led", prefix="led."), module=LED, tensors=_tensors
)

"""LED's modules: attention within windows and of global tokens, the encoder and the whole model.

Beltagy et al., arXiv 2004.05150 (Longformer-Encoder-Decoder, section 7). All else is BART's.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from pid_jax.models.attention import (
    AttentionDropout,
    GlobalKeys,
    Source,
    attend_without_prompts,
    key_value,
    local_attention,
    merge_heads,
    split_heads,
)
from pid_jax.models.bart.modules import BartAttention, BartEncoder, BartEncoderLayer, BartLike
from pid_jax.models.layers import Dense
from pid_jax.models.led.configuration import LEDConfig
from pid_jax.models.rematerialisation import rematerialised


class LEDAttention(BartAttention):
    """Attention within a window. Global tokens attend by projections of their own."""

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
        global_keys = None
        if count:
            global_keys = GlobalKeys(layer.window(0, count), mask[:, :count])
        dropout = None
        if not deterministic and self.dropout_rate:
            key = self.make_rng("dropout")
            dropout = AttentionDropout(key, self.dropout_rate, same_for_queries=False)
        local = local_attention(
            self.scaled_query(x),
            layer,
            mask & (jnp.arange(length) >= count),  # each is seen once
            self.radius,
            global_keys=global_keys,
            dropout=dropout,
        )
        all_tokens = key_value(
            split_heads(self.key_global(x), self.heads),
            split_heads(self.value_global(x), self.heads),
        )
        scale = (self.width // self.heads) ** -0.5
        attended = attend_without_prompts(
            split_heads(self.query_global(x[:, :count]) * scale, self.heads),
            [Source(all_tokens, mask[:, None, :])],
            dropout=self.dropout.drawn(deterministic),
        )
        return self.output(merge_heads(jnp.concatenate([attended, local[:, :, count:]], axis=2)))


class LEDEncoderLayer(BartEncoderLayer):
    """BART's layer with attention within a window."""

    config: LEDConfig
    radius: int

    def attention(self, heads: int) -> LEDAttention:
        config = self.config
        return LEDAttention(
            config.d_model,
            heads,
            config.init_std,
            config.attention_dropout,
            self.dtype,
            self.radius,
            config.global_attention_tokens,
        )


class LEDEncoder(BartEncoder):
    """BART's encoder, with a window for each layer."""

    config: LEDConfig

    def setup(self) -> None:
        config = self.config
        self.set_up(config.max_document_tokens)
        layer = rematerialised(LEDEncoderLayer, self.remat)
        self.layers = [layer(config, self.dtype, window // 2) for window in config.attention_window]


class LED(BartLike):
    """The model of LED."""

    config: LEDConfig
    encoder_type: ClassVar[type[nn.Module]] = LEDEncoder

"""What T5 and LongT5 share: configuration, attention, feed-forward, layers, decoder, head.

Raffel et al., arXiv 1910.10683; the gated feed-forward: Shazeer, arXiv 2002.05202.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pid_jax.errors import UserError
from pid_jax.models import config_reading
from pid_jax.models.attention import (
    Source,
    attend,
    attend_by_blocks,
    causal_mask,
    merge_heads,
    split_heads,
    split_source_heads,
)
from pid_jax.models.layers import ACTIVATIONS, Dense, RMSNorm
from pid_jax.models.positions import RelativePositionBias
from pid_jax.models.protocol import KeyValue, Past, TensorPlace
from pid_jax.models.two_stacks import TwoStacks, token_embeddings

ConfigT = TypeVar("ConfigT", bound="T5LikeConfig")


@dataclasses.dataclass(frozen=True)
class T5LikeConfig:
    """The values of a `config.json` that both families have, by their names there."""

    model_type: str
    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    """The activation, after `gated-` where the feed-forward is gated: what the two below say, but
    that `gated-gelu` means `gelu_new`. Where they are given they have the last word."""
    dense_act_fn: str = "relu"
    is_gated_act: bool = False
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    other_eos_token_ids: tuple[int, ...] = ()
    decoder_start_token_id: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    max_document_tokens: ClassVar[None] = None
    max_decoder_tokens: ClassVar[None] = None
    architecture: ClassVar[Mapping[str, str]]
    """The name of transformers' class, by model type."""
    ALIASES: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    @property
    def bias_in_every_layer(self) -> bool:
        """Whether each layer has relative position biases of its own, not only the first."""
        return False

    @classmethod
    def read(
        cls: type[ConfigT], config: Mapping[str, Any], defaults: dict[str, Any], *, scales: bool
    ) -> ConfigT:
        """Reads a `config.json`, whose own `tie_word_embeddings` decides until weights are seen.

        defaults: what an absent key means where that is not the field's own default. scales:
        whether the model type ever scales the decoder's output before the head; then
        `scale_decoder_outputs` says whether it does, or, where that is absent, the output is
        scaled unless `tie_word_embeddings` is false. Raises `UserError` for a missing or
        unsupported value, by its key.
        """
        defaults = {"model_type": config["model_type"], **defaults}
        if "num_decoder_layers" not in config or config["num_decoder_layers"] is None:
            layers = config.get("num_layers", defaults.get("num_layers", cls.num_layers))
            defaults["num_decoder_layers"] = layers
        tied = config.get("tie_word_embeddings") is not False
        defaults["scale_decoder_outputs"] = tied
        feed_forward = config.get("feed_forward_proj")
        if feed_forward is None:
            feed_forward = defaults.get("feed_forward_proj", cls.feed_forward_proj)
        if isinstance(feed_forward, str):
            defaults["is_gated_act"] = feed_forward.startswith("gated-")
            named = feed_forward.removeprefix("gated-")
            defaults["dense_act_fn"] = "gelu_new" if feed_forward == "gated-gelu" else named
        config = config_reading.without_aliases(config, cls.ALIASES)
        if not scales:
            config["scale_decoder_outputs"] = False
        for key in ("is_gated_act", "scale_decoder_outputs"):
            if key in config and config[key] is None:  # not absent: transformers takes it as given
                config[key] = False

        read = config_reading.read_fields(cls, config, defaults)
        buckets, distance = (
            read.relative_attention_num_buckets,
            read.relative_attention_max_distance,
        )
        if buckets < 4 or buckets % 2 or distance <= buckets // 2:
            raise UserError(
                'config.json: "relative_attention_num_buckets" must be even and at least 4, and '
                '"relative_attention_max_distance" above half of it, not '
                f"{buckets} and {distance}"
            )
        if read.dense_act_fn == defaults["dense_act_fn"]:
            supported = [*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS)]
            config_reading.check_supported("feed_forward_proj", read.feed_forward_proj, supported)
        config_reading.check_supported("dense_act_fn", read.dense_act_fn, ACTIVATIONS)
        encoder_decoder = config.get("is_encoder_decoder", True)
        config_reading.check_supported("is_encoder_decoder", encoder_decoder, [True])
        config_reading.check_positive(
            read,
            "vocab_size",
            "d_model",
            "d_kv",
            "d_ff",
            "num_layers",
            "num_decoder_layers",
            "num_heads",
        )
        return read

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        return config_reading.write_fields(self) | {
            "architectures": [self.architecture[self.model_type]],
            "is_encoder_decoder": True,
        }

    def with_tensors(self: ConfigT, names: Collection[str]) -> ConfigT:
        """The configuration that fits a checkpoint holding these tensors.

        A checkpoint with `lm_head.weight` is untied, whatever its `config.json` says.
        """
        return dataclasses.replace(self, tie_word_embeddings="lm_head.weight" not in names)


class Attention(nn.Module):
    """Multi-head attention in T5's manner: no biases, no scaling of the scores."""

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
        self.output = Dense(config.d_model, ("heads", "embed"), factor * width**-0.5, self.dtype)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def project(self, x: Float[Array, "B S D"]) -> KeyValue:
        """Keys and values of what is attended to."""
        heads = self.config.num_heads
        return KeyValue(
            split_source_heads(self.key(x), heads), split_source_heads(self.value(x), heads)
        )

    def __call__(
        self, x: Float[Array, "B L D"], sources: list[Source], deterministic: bool
    ) -> Float[Array, "B L D"]:
        query = split_heads(self.query(x), self.config.num_heads)
        attended = attend(
            query, sources, dropout=lambda weights: self.dropout(weights, deterministic)
        )
        return self.output(merge_heads(attended))

    def of_documents(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], bias: Any, deterministic: bool
    ) -> Float[Array, "B S D"]:
        """Self-attention of an encoder.

        bias: `Float["H distances"]` where deterministic, else `Float["1 H S S"]`; a family with
        another attention in its encoder overrides this and says what it takes.
        """
        if not deterministic:
            return self(x, [Source(self.project(x), mask[:, None, :], bias)], deterministic)
        query = split_heads(self.query(x), self.config.num_heads)
        return self.output(merge_heads(attend_by_blocks(query, self.project(x), mask, bias)))


class FeedForward(nn.Module):
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

    def __call__(self, x: Float[Array, "B L D"], deterministic: bool) -> Float[Array, "B L D"]:
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


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each added to what it read after normalising it."""

    config: T5LikeConfig
    dtype: DTypeLike
    attention: type[Attention] = Attention

    def setup(self) -> None:
        self.self_attention_norm = norm(self.config, self.dtype)
        self.self_attention = self.attention(self.config, self.dtype)
        self.feed_forward_norm = norm(self.config, self.dtype)
        self.feed_forward = FeedForward(self.config, self.dtype)
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
        forwarded = self.feed_forward(self.feed_forward_norm(x), deterministic)
        return x + self.dropout(forwarded, deterministic)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the document, feed-forward."""

    config: T5LikeConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.self_attention_norm = norm(self.config, self.dtype)
        self.self_attention = Attention(self.config, self.dtype)
        self.cross_attention_norm = norm(self.config, self.dtype)
        self.cross_attention = Attention(self.config, self.dtype)
        self.feed_forward_norm = norm(self.config, self.dtype)
        self.feed_forward = FeedForward(self.config, self.dtype)
        self.dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        present_mask: Bool[Array, "B L L"],
        present_bias: Float[Array, "#B H L L"],
        past: Source | None,
        document: Source,
        deterministic: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue]:
        normed = self.self_attention_norm(x)
        present = self.self_attention.project(normed)
        sources = [Source(present, present_mask, present_bias)]
        if past is not None:
            sources.insert(0, past)
        x = x + self.dropout(self.self_attention(normed, sources, deterministic), deterministic)
        normed = self.cross_attention_norm(x)
        x = x + self.dropout(self.cross_attention(normed, [document], deterministic), deterministic)
        forwarded = self.feed_forward(self.feed_forward_norm(x), deterministic)
        return x + self.dropout(forwarded, deterministic), present


class Decoder(nn.Module):
    config: T5LikeConfig
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        self.layers = [DecoderLayer(config, self.dtype) for _ in range(config.num_decoder_layers)]
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
    ) -> tuple[Float[Array, "B L D"], tuple[KeyValue, ...]]:
        del positions  # Distances alone are known, and those are differences of slots.
        mask = causal_mask(x.shape[1]) & token_mask[:, None, :]
        biases = [bias(slots, slots) for bias in self.relative_position_bias]
        if past is not None:
            past_slots = jnp.arange(past.mask.shape[1])[None]
            past_biases = [bias(slots, past_slots) for bias in self.relative_position_bias]
        x = self.dropout(x, deterministic)
        present = []
        for i, layer in enumerate(self.layers):
            shared = i % len(biases)
            remembered = None
            if past is not None:
                remembered = Source(past.layers[i], past.mask[:, None, :], past_biases[shared])
            document = Source(cross_attention[i], document_mask[:, None, :])
            x, new = layer(x, mask, biases[shared], remembered, document, deterministic)
            present.append(new)
        return self.dropout(self.final_norm(x), deterministic), tuple(present)


class T5Like(TwoStacks):
    """A family's module but for its encoder."""

    config: T5LikeConfig
    encoder_type: ClassVar[type[nn.Module]]

    def setup(self) -> None:
        config = self.config
        self.shared = token_embeddings(
            config.vocab_size, config.d_model, config.initializer_factor, self.dtype
        )
        self.encoder = self.encoder_type(config, self.dtype)
        self.decoder = Decoder(config, self.dtype)
        if not config.tie_word_embeddings:
            self.lm_head = self.head(config.initializer_factor * config.d_model**-0.5)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        return super().logits(hidden)


def tensors(
    config: T5LikeConfig, encoder_attention: str = "SelfAttention"
) -> dict[str, TensorPlace]:
    """Where each tensor stands; `encoder_attention` is what theirs is called in the encoder."""
    places = {"shared.weight": TensorPlace(("shared", "embedding"))}
    if not config.tie_word_embeddings:
        places["lm_head.weight"] = TensorPlace(("lm_head", "kernel"), transposed=True)
    attention = {"q": "query", "k": "key", "v": "value", "o": "output"}
    forward = ("wi_0", "wi_1", "wo") if config.is_gated_act else ("wi", "wo")
    stacks = {
        "encoder": (config.num_layers, {encoder_attention: "self_attention"}),
        "decoder": (
            config.num_decoder_layers,
            {"SelfAttention": "self_attention", "EncDecAttention": "cross_attention"},
        ),
    }
    for stack, (layers, attentions) in stacks.items():
        places[f"{stack}.final_layer_norm.weight"] = TensorPlace((stack, "final_norm", "scale"))
        for i in range(layers):
            layer = (stack, f"layers_{i}")
            for j, (theirs, ours) in enumerate(attentions.items()):
                block = f"{stack}.block.{i}.layer.{j}"
                norm = TensorPlace((*layer, f"{ours}_norm", "scale"))
                places[f"{block}.layer_norm.weight"] = norm
                for letter, name in attention.items():
                    kernel = TensorPlace((*layer, ours, name, "kernel"), transposed=True)
                    places[f"{block}.{theirs}.{letter}.weight"] = kernel
            block = f"{stack}.block.{i}.layer.{len(attentions)}"
            norm = TensorPlace((*layer, "feed_forward_norm", "scale"))
            places[f"{block}.layer_norm.weight"] = norm
            for name in forward:
                kernel = TensorPlace((*layer, "feed_forward", name, "kernel"), transposed=True)
                places[f"{block}.DenseReluDense.{name}.weight"] = kernel
            if i == 0 or config.bias_in_every_layer:
                own = next(iter(attentions))
                bias = f"{stack}.block.{i}.layer.0.{own}.relative_attention_bias.weight"
                path = (stack, f"relative_position_bias_{i}", "embedding")
                places[bias] = TensorPlace(path)
    return places


ALIASES: Mapping[str, str] = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}
"""See `Family.aliases`."""
IGNORED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})
"""The first T5 checkpoints carry a cross-attention bias that their model never used."""

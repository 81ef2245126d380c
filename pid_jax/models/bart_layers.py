"""What BART and its relatives share: configuration, layers, the model, tensor names.

A family's file says in which points its models differ, as class variables of its configuration:
where norms stand, which positions there are, what an absent key of its `config.json` means.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
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
from pid_jax.models.layers import ACTIVATIONS, Dense, LayerNorm
from pid_jax.models.positions import LearnedPositions, SinusoidalPositions, sinusoids
from pid_jax.models.protocol import About, Family, KeyValue, Past, TensorPlace
from pid_jax.models.two_stacks import TwoStacks, token_embeddings


@dataclasses.dataclass(frozen=True)
class BartLikeConfig:
    """The values of a `config.json` that shape the computation; a family sets its defaults.

    Fields have the names of their keys but for those in `KEYS`.
    """

    model_type: str
    vocab_size: int = 50265
    max_document_tokens: int = 1024
    max_decoder_tokens: int = 1024
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    encoder_layerdrop: float = 0.0
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    decoder_layerdrop: float = 0.0
    activation_function: str = "gelu"
    dropout_rate: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    scale_embedding: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    other_eos_token_ids: tuple[int, ...] = ()
    decoder_start_token_id: int = 2
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    architecture: ClassVar[str]
    """The class of transformers that builds it."""
    norm_first: ClassVar[bool]
    """Whether a layer normalises what its parts read, or else what they and it add up to."""
    embedding_norm: ClassVar[bool]
    """Whether embeddings are normalised before the first layer."""
    final_norm: ClassVar[bool]
    """Whether outputs are normalised after the last layer."""
    position_offset: ClassVar[int] = 2
    """Rows of a table of learned positions before that of position 0."""
    sinusoidal: ClassVar[bool] = False
    """Whether positions are sines and cosines, or else learned."""
    KEYS: ClassVar[Mapping[str, str]] = {
        "dropout_rate": "dropout",
        "max_document_tokens": "max_position_embeddings",
        "max_decoder_tokens": "max_position_embeddings",
    }

    ALIASES: ClassVar[Mapping[str, str]] = {
        "num_attention_heads": "encoder_attention_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
    }

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by before positions are added."""
        return self.d_model**0.5 if self.scale_embedding else 1.0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "BartLikeConfig":
        """Reads a `config.json`; raises `UserError` for what is not supported, by its key."""
        config = config_reading.without_aliases(config, cls.ALIASES)
        defaults: dict[str, Any] = {"model_type": config["model_type"]}
        if "forced_bos_token_id" not in config and config.get("force_bos_token_to_be_generated"):
            defaults["forced_bos_token_id"] = config.get("bos_token_id", cls.bos_token_id)
        read = config_reading.read_fields(cls, config, defaults, cls.KEYS)
        activation = read.activation_function
        config_reading.check_supported("activation_function", activation, list(ACTIVATIONS))
        encoder_decoder = config.get("is_encoder_decoder", True)
        config_reading.check_supported("is_encoder_decoder", encoder_decoder, [True])
        sizes = ("vocab_size", "d_model", "encoder_layers", "decoder_layers")
        config_reading.check_positive(read, *sizes, "encoder_ffn_dim", "decoder_ffn_dim")
        for key in ("encoder_attention_heads", "decoder_attention_heads"):
            config_reading.check_positive(read, key)
            if read.d_model % getattr(read, key):
                raise UserError(
                    f'config.json: "d_model" must be a multiple of "{key}", but is {read.d_model}, '
                    f"and that {getattr(read, key)}"
                )
        return read

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        return config_reading.write_fields(self, self.KEYS) | {
            "architectures": [self.architecture],
            "is_encoder_decoder": True,
        }

    def with_tensors(self, names: Collection[str]) -> "BartLikeConfig":
        """The configuration that fits a checkpoint holding these tensors.

        A checkpoint with `lm_head.weight` is untied, whatever its `config.json` says.
        """
        return dataclasses.replace(self, tie_word_embeddings="lm_head.weight" not in names)


class Attention(nn.Module):
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
        self.dropout = nn.Dropout(self.dropout_rate)

    def project(self, x: Float[Array, "B S D"]) -> KeyValue:
        """Keys and values of what is attended to."""
        return KeyValue(
            split_source_heads(self.key(x), self.heads),
            split_source_heads(self.value(x), self.heads),
        )

    def scaled_query(self, x: Float[Array, "B L D"]) -> Float[Array, "B H L K"]:
        """Queries whose products with keys are the scores."""
        scale = (self.width // self.heads) ** -0.5
        return split_heads(self.query(x) * scale, self.heads)

    def __call__(
        self, x: Float[Array, "B L D"], sources: list[Source], deterministic: bool
    ) -> Float[Array, "B L D"]:
        attended = attend(
            self.scaled_query(x),
            sources,
            dropout=lambda weights: self.dropout(weights, deterministic),
        )
        return self.output(merge_heads(attended))

    def of_documents(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        """Self-attention of an encoder."""
        if deterministic or not self.dropout_rate:
            query = self.scaled_query(x)
            return self.output(merge_heads(attend_by_blocks(query, self.project(x), mask, None)))
        return self(x, [Source(self.project(x), mask[:, None, :])], deterministic)


class FeedForward(nn.Module):
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

    def __call__(self, x: Float[Array, "B L D"], deterministic: bool) -> Float[Array, "B L D"]:
        x = ACTIVATIONS[self.config.activation_function](self.wi(x))
        return self.wo(self.dropout(x, deterministic))


class Layer(nn.Module):
    """What layers of encoders and decoders have in common: parts added to what they read."""

    config: BartLikeConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.dropout = nn.Dropout(self.config.dropout_rate)

    def read(self, norm: LayerNorm, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """What a part reads."""
        return norm(x) if self.config.norm_first else x

    def add(
        self,
        norm: LayerNorm,
        x: Float[Array, "B L D"],
        part: Float[Array, "B L D"],
        deterministic: bool,
    ) -> Float[Array, "B L D"]:
        """What the next part is given after this one."""
        x = x + self.dropout(part, deterministic)
        return x if self.config.norm_first else norm(x)

    def attention(self, heads: int) -> Attention:
        config = self.config
        dropout = config.attention_dropout
        return Attention(config.d_model, heads, config.init_std, dropout, self.dtype)


class EncoderLayer(Layer):
    """Self-attention and feed-forward."""

    def setup(self) -> None:
        super().setup()
        self.self_attention_norm = LayerNorm(dtype=self.dtype)
        self.self_attention = self.attention(self.config.encoder_attention_heads)
        self.feed_forward_norm = LayerNorm(dtype=self.dtype)
        self.feed_forward = FeedForward(self.config.encoder_ffn_dim, self.config, self.dtype)

    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        read = self.read(self.self_attention_norm, x)
        attended = self.self_attention.of_documents(read, mask, deterministic)
        x = self.add(self.self_attention_norm, x, attended, deterministic)
        forwarded = self.feed_forward(self.read(self.feed_forward_norm, x), deterministic)
        return self.add(self.feed_forward_norm, x, forwarded, deterministic)


class DecoderLayer(Layer):
    """Self-attention, cross-attention to the document, feed-forward."""

    def setup(self) -> None:
        super().setup()
        heads = self.config.decoder_attention_heads
        self.self_attention_norm = LayerNorm(dtype=self.dtype)
        self.self_attention = self.attention(heads)
        self.cross_attention_norm = LayerNorm(dtype=self.dtype)
        self.cross_attention = self.attention(heads)
        self.feed_forward_norm = LayerNorm(dtype=self.dtype)
        self.feed_forward = FeedForward(self.config.decoder_ffn_dim, self.config, self.dtype)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L L"],
        past: Source | None,
        document: Source,
        deterministic: bool,
    ) -> tuple[Float[Array, "B L D"], KeyValue]:
        read = self.read(self.self_attention_norm, x)
        present = self.self_attention.project(read)
        sources = [Source(present, mask)] if past is None else [past, Source(present, mask)]
        attended = self.self_attention(read, sources, deterministic)
        x = self.add(self.self_attention_norm, x, attended, deterministic)
        read = self.read(self.cross_attention_norm, x)
        attended = self.cross_attention(read, [document], deterministic)
        x = self.add(self.cross_attention_norm, x, attended, deterministic)
        forwarded = self.feed_forward(self.read(self.feed_forward_norm, x), deterministic)
        return self.add(self.feed_forward_norm, x, forwarded, deterministic), present


class Stack(nn.Module):
    """What encoder and decoder have in common: what stands before and after the layers."""

    config: BartLikeConfig
    dtype: DTypeLike

    def set_up(self, positions: int) -> None:
        """Makes what is common to both; positions: the most tokens there may be."""
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
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], deterministic: bool
    ) -> Float[Array, "B L D"]:
        """What the first layer reads."""
        x = x + self.positions(positions)
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        return self.dropout(x, deterministic)

    def leave(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The stack's output, from the last layer's."""
        return self.final_norm(x) if self.config.final_norm else x

    def unless_dropped(
        self,
        rate: float,
        x: Float[Array, "B L D"],
        after: Float[Array, "B L D"],
        deterministic: bool,
    ) -> Float[Array, "B L D"]:
        """What a layer made of x, or in training now and then x (Fan et al., arXiv 1909.11556)."""
        if deterministic or not rate:
            return after
        return jnp.where(jax.random.bernoulli(self.make_rng("dropout"), rate), x, after)


class Encoder(Stack):
    """Reads documents; each token's position is counted from its document's first."""

    def setup(self) -> None:
        config = self.config
        self.set_up(config.max_document_tokens)
        self.layers = [EncoderLayer(config, self.dtype) for _ in range(config.encoder_layers)]

    def __call__(
        self, x: Float[Array, "B S D"], document_mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        positions = jnp.maximum(jnp.cumsum(document_mask, axis=-1, dtype=jnp.int32) - 1, 0)
        x = self.enter(x, positions, deterministic)
        for layer in self.layers:
            after = layer(x, document_mask, deterministic)
            x = self.unless_dropped(self.config.encoder_layerdrop, x, after, deterministic)
        return self.leave(x)


class Decoder(Stack):
    """Reads prompts and writes answers, with the document at hand."""

    def setup(self) -> None:
        config = self.config
        self.set_up(config.max_decoder_tokens)
        self.layers = [DecoderLayer(config, self.dtype) for _ in range(config.decoder_layers)]

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
        del slots  # Positions are absolute, and distances mean nothing.
        mask = causal_mask(x.shape[1]) & token_mask[:, None, :]
        x = self.enter(x, positions, deterministic)
        present = []
        for i, layer in enumerate(self.layers):
            remembered = None if past is None else Source(past.layers[i], past.mask[:, None, :])
            document = Source(cross_attention[i], document_mask[:, None, :])
            after, new = layer(x, mask, remembered, document, deterministic)
            x = self.unless_dropped(self.config.decoder_layerdrop, x, after, deterministic)
            present.append(new)
        return self.leave(x), tuple(present)


class BartLike(TwoStacks):
    """The families' module."""

    config: BartLikeConfig
    encoder_type: ClassVar[type[nn.Module]] = Encoder
    """A family with an encoder of its own names it here."""

    def setup(self) -> None:
        config = self.config
        self.shared = token_embeddings(
            config.vocab_size, config.d_model, config.init_std, self.dtype
        )
        self.encoder = self.encoder_type(config, self.dtype)
        self.decoder = Decoder(config, self.dtype)
        if not config.tie_word_embeddings:
            self.lm_head = self.head(config.init_std)
        self.final_logits_bias = self.param(
            "final_logits_bias",
            nn.with_logical_partitioning(nn.initializers.zeros, (None, "vocab")),
            (1, config.vocab_size),
            jnp.float32,
        )

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        return self.shared(tokens) * self.config.embedding_scale

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        # A buffer of the checkpoint, not trained: hence no gradient.
        bias = jax.lax.stop_gradient(self.final_logits_bias[0].astype(jnp.float32))
        return super().logits(hidden) + bias


_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}


def linear_tensors(theirs: str, *ours: str) -> dict[str, TensorPlace]:
    """Kernel and bias of one `Dense`."""
    return {
        f"{theirs}.weight": TensorPlace((*ours, "kernel"), transposed=True),
        f"{theirs}.bias": TensorPlace((*ours, "bias")),
    }


def norm_tensors(theirs: str, *ours: str) -> dict[str, TensorPlace]:
    """Scale and bias of one `LayerNorm`."""
    return {
        f"{theirs}.weight": TensorPlace((*ours, "scale")),
        f"{theirs}.bias": TensorPlace((*ours, "bias")),
    }


def attention_tensors(theirs: str, *ours: str) -> dict[str, TensorPlace]:
    """All of one `Attention`."""
    places: dict[str, TensorPlace] = {}
    for projection, name in _PROJECTIONS.items():
        places |= linear_tensors(f"{theirs}.{projection}", *ours, name)
    return places


def stack_tensors(config: BartLikeConfig, stack: str, prefix: str) -> dict[str, TensorPlace]:
    """All of the "encoder" or the "decoder"."""
    theirs = f"{prefix}{stack}"
    table = "sinusoids" if config.sinusoidal else "embedding"
    places = {f"{theirs}.embed_positions.weight": TensorPlace((stack, "positions", table))}
    if config.embedding_norm:
        places |= norm_tensors(f"{theirs}.layernorm_embedding", stack, "embedding_norm")
    if config.final_norm:
        places |= norm_tensors(f"{theirs}.layer_norm", stack, "final_norm")
    attentions = {"self_attn": "self_attention"}
    if stack == "decoder":
        attentions["encoder_attn"] = "cross_attention"
    for i in range(config.encoder_layers if stack == "encoder" else config.decoder_layers):
        layer, path = f"{theirs}.layers.{i}", (stack, f"layers_{i}")
        for name, ours in attentions.items():
            places |= attention_tensors(f"{layer}.{name}", *path, ours)
            places |= norm_tensors(f"{layer}.{name}_layer_norm", *path, f"{ours}_norm")
        places |= linear_tensors(f"{layer}.fc1", *path, "feed_forward", "wi")
        places |= linear_tensors(f"{layer}.fc2", *path, "feed_forward", "wo")
        places |= norm_tensors(f"{layer}.final_layer_norm", *path, "feed_forward_norm")
    return places


def tensors(config: BartLikeConfig, prefix: str = "model.") -> dict[str, TensorPlace]:
    """Hugging Face tensor names and where each stands."""
    embedding = TensorPlace(("shared", "embedding"))
    places = {
        f"{prefix}shared.weight": embedding,
        "final_logits_bias": TensorPlace(("final_logits_bias",)),
    }
    if not config.tie_word_embeddings:
        # Where nothing is tied, transformers takes each of these from the checkpoint.
        places[f"{prefix}encoder.embed_tokens.weight"] = embedding
        places[f"{prefix}decoder.embed_tokens.weight"] = embedding
        places["lm_head.weight"] = TensorPlace(("lm_head", "kernel"), transposed=True)
    return (
        places | stack_tensors(config, "encoder", prefix) | stack_tensors(config, "decoder", prefix)
    )


def family(
    config: type[BartLikeConfig], about: About, *model_types: str, prefix: str = "model."
) -> Family:
    """The registry's entry of a family that differs from the others by its configuration alone.

    prefix: what begins the names of its tensors.
    """
    defaults = {"final_logits_bias": _zeros}
    if config.sinusoidal:
        for stack in ("encoder", "decoder"):
            defaults[f"{prefix}{stack}.embed_positions.weight"] = sinusoids
    return Family(
        about=about,
        model_types=model_types,
        config_from_hf=config.from_hf,
        module=BartLike,
        tensors=functools.partial(tensors, prefix=prefix),
        aliases={
            f"{prefix}encoder.embed_tokens.weight": f"{prefix}shared.weight",
            f"{prefix}decoder.embed_tokens.weight": f"{prefix}shared.weight",
            "lm_head.weight": f"{prefix}shared.weight",
        },
        ignored=frozenset({f"{prefix}encoder.version", f"{prefix}decoder.version"}),
        defaults=defaults,
        prefix=prefix,
    )


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)

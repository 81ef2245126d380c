"""What the encoder-decoders made of Gemma share: T5Gemma and T5Gemma 2.

Gemma Team, arXiv 2408.00118 (Gemma 2: norms before and after each block, windows in every other
layer, soft-capping) and 2503.19786 (Gemma 3: norms of queries and keys in place of capping).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

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
    capped,
    causal_mask,
    merge_heads,
    split_heads,
    split_source_heads,
    within,
)
from pid_jax.models.layers import ACTIVATIONS, Dense, RMSNorm
from pid_jax.models.positions import Rotation, rotate
from pid_jax.models.protocol import KeyValue, Past, TensorPlace
from pid_jax.models.two_stacks import token_embeddings

FULL, SLIDING = "full_attention", "sliding_attention"
"""The types of layers: those that see everything, and those that see a window."""


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """What a `config.json` says of its encoder or its decoder, by the names there."""

    layer_types: tuple[str, ...]
    full_rotation: Rotation
    sliding_rotation: Rotation
    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    query_pre_attn_scalar: int = 256
    sliding_window: int = 4096
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    def rotation(self, layer: int) -> Rotation:
        """The rotary positions of a layer."""
        sliding = self.layer_types[layer] == SLIDING
        return self.sliding_rotation if sliding else self.full_rotation

    def to_hf(self) -> dict[str, Any]:
        """Everything but the rotary positions, which families write in their own ways."""
        values = dataclasses.asdict(self) | {"layer_types": list(self.layer_types)}
        del values["full_rotation"], values["sliding_rotation"]
        return values | {"attention_bias": False}


def read_stack(
    config: Mapping[str, Any],
    key: str,
    defaults: Mapping[str, Any],
    rotations: tuple[Rotation, Rotation],
    sliding_pattern: int,
) -> StackConfig:
    """Reads a stack's part of a `config.json`.

    key: where it stands there, for errors. sliding_pattern: where the types of layers are not
    listed, every so many-th is full. Raises `UserError` for what is wrong or not supported.
    """
    inside = f"{key}."
    scalars = {name: value for name, value in config.items() if name != "layer_types"}
    count = scalars.get("num_hidden_layers") or defaults.get("num_hidden_layers", 26)
    types = config.get("layer_types")
    if types is None and isinstance(count, int):
        types = [SLIDING if (i + 1) % sliding_pattern else FULL for i in range(count)]
    if not isinstance(types, list | tuple) or not set(types) <= {FULL, SLIDING}:
        raise UserError(
            f'config.json: "{inside}layer_types" must be a list of "{FULL}" and "{SLIDING}", '
            f"but is {types!r}"
        )
    special: dict[str, Any] = {
        "layer_types": tuple(types),
        "full_rotation": rotations[0],
        "sliding_rotation": rotations[1],
    }
    if config.get("sliding_window", 0) is None:
        raise UserError(f'config.json: "{inside}sliding_window" must not be null')
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in scalars and scalars[name] is None:  # null is none, not the default
            special[name] = None
    read = config_reading.read_fields(StackConfig, scalars, {**defaults, **special}, within=inside)
    config_reading.check_positive(
        read,
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "query_pre_attn_scalar",
        "sliding_window",
        within=inside,
    )
    if len(read.layer_types) != read.num_hidden_layers:
        raise UserError(
            f'config.json: "{inside}layer_types" lists {len(read.layer_types)} layers, but '
            f'"{inside}num_hidden_layers" is {read.num_hidden_layers}'
        )
    if read.num_attention_heads % read.num_key_value_heads:
        raise UserError(
            f'config.json: "{inside}num_attention_heads" must be a multiple of '
            f'"{inside}num_key_value_heads", not {read.num_attention_heads} of '
            f"{read.num_key_value_heads}"
        )
    config_reading.check_supported(
        f"{inside}hidden_activation", read.hidden_activation, list(ACTIVATIONS)
    )
    biased = config.get("attention_bias", False)
    config_reading.check_supported(f"{inside}attention_bias", biased, [False])
    if read.head_dim % 2:
        raise UserError(f'config.json: "{inside}head_dim" must be even, but is {read.head_dim}')
    return read


def read_rotation(given: object, key: str, theta: object) -> Rotation:
    """Reads rotary positions; `theta` is for where `given` has no `rope_theta` of its own."""
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise UserError(f'config.json: "{key}" must be of type dict, but is {given!r}')
    kind = given.get("rope_type", given.get("type", "default"))
    config_reading.check_supported(f"{key}.rope_type", kind, ["default", "linear"])
    values = {
        "rope_theta": given.get("rope_theta", theta),
        "factor": given.get("factor") if kind == "linear" else 1.0,
    }
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(
                f'config.json: "{key}.{name}" must be a number above 0, but is {value!r}'
            )
    return Rotation(float(values["rope_theta"]), float(values["factor"]))


def write_rotation(rotation: Rotation) -> dict[str, Any]:
    """What `read_rotation` reads."""
    if rotation.factor == 1.0:
        return {"rope_type": "default", "rope_theta": rotation.theta}
    return {"rope_type": "linear", "rope_theta": rotation.theta, "factor": rotation.factor}


def special_token_ids(config: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens: as the whole `config.json` has them, else as its decoder's part has."""
    found = {}
    for name, names in {
        "pad_token_id": ("pad_token_id",),
        "eos_token_id": ("eos_token_id",),
        "decoder_start_token_id": ("decoder_start_token_id", "bos_token_id"),
    }.items():
        values = [part.get(one) for one in names for part in (config, decoder)]
        found[name] = next((value for value in values if value is not None), None)
    return found


class DropoutRates(NamedTuple):
    hidden: float
    attention: float
    """Of the softmax's output."""


def norm(config: StackConfig, dtype: DTypeLike) -> RMSNorm:
    """A norm as every Gemma has it."""
    return RMSNorm(config.rms_norm_eps, dtype, around_one=True)


def embedding(config: StackConfig, dtype: DTypeLike) -> nn.Embed:
    """The table of `embed`."""
    return token_embeddings(config.vocab_size, config.hidden_size, config.initializer_range, dtype)


def embed(table: nn.Embed, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """The embeddings of tokens, scaled."""
    embedded = table(tokens)
    return embedded * jnp.asarray(table.features**0.5, embedded.dtype)  # rounded as weights are


class Attention(nn.Module):
    """Attention whose queries share keys and values in groups, with rotary positions."""

    config: StackConfig
    rotation: Rotation
    rates: DropoutRates
    dtype: DTypeLike
    query_key_norms: bool = False

    def setup(self) -> None:
        config = self.config
        width = config.num_attention_heads * config.head_dim
        source_width = config.num_key_value_heads * config.head_dim
        into, stddev = ("embed", "heads"), config.initializer_range
        self.query = Dense(width, into, stddev, self.dtype)
        self.key = Dense(source_width, into, stddev, self.dtype)
        self.value = Dense(source_width, into, stddev, self.dtype)
        self.output = Dense(config.hidden_size, ("heads", "embed"), stddev, self.dtype)
        if self.query_key_norms:
            self.query_norm = norm(config, self.dtype)
            self.key_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(self.rates.attention)

    def project(
        self, x: Float[Array, "B S D"], positions: Int[Array, "#B S"] | None = None
    ) -> KeyValue:
        """Keys and values of what is attended to; where it has positions, keys are rotated."""
        heads = self.config.num_key_value_heads
        key = split_heads(self.key(x), heads)
        if self.query_key_norms:
            key = self.key_norm(key)
        if positions is not None:
            key = rotate(key, positions, self.rotation)
        return KeyValue(key.swapaxes(2, 3), split_source_heads(self.value(x), heads))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "#B L"] | None,
        sources: list[Source],
        deterministic: bool,
    ) -> Float[Array, "B L D"]:
        """What the queries of x see in the sources; positions: None where none are rotated."""
        attended = attend(
            self._queries(x, positions),
            sources,
            scale=self._scale,
            dropout=lambda weights: self.dropout(weights, deterministic),
            soft_cap=self.config.attn_logit_softcapping,
        )
        return self.output(merge_heads(attended))

    def of_documents(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "#B S"],
        mask: Bool[Array, "B S"],
        reach: tuple[int, int] | None,
    ) -> Float[Array, "B S D"]:
        """Self-attention of an encoder, without dropout."""
        attended = attend_by_blocks(
            self._queries(x, positions),
            self.project(x, positions),
            mask,
            scale=self._scale,
            soft_cap=self.config.attn_logit_softcapping,
            reach=reach,
        )
        return self.output(merge_heads(attended))

    @property
    def _scale(self) -> float:
        return float(self.config.query_pre_attn_scalar**-0.5)

    def _queries(
        self, x: Float[Array, "B L D"], positions: Int[Array, "#B L"] | None
    ) -> Float[Array, "B H L K"]:
        query = split_heads(self.query(x), self.config.num_attention_heads)
        if self.query_key_norms:
            query = self.query_norm(query)
        return query if positions is None else rotate(query, positions, self.rotation)


class FeedForward(nn.Module):
    """A feed-forward whose first product is gated by a second one."""

    config: StackConfig
    rates: DropoutRates
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        into, stddev = ("embed", "mlp"), config.initializer_range
        self.gate = Dense(config.intermediate_size, into, stddev, self.dtype)
        self.up = Dense(config.intermediate_size, into, stddev, self.dtype)
        self.down = Dense(config.hidden_size, ("mlp", "embed"), stddev, self.dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def __call__(self, x: Float[Array, "B L D"], deterministic: bool) -> Float[Array, "B L D"]:
        x = ACTIVATIONS[self.config.hidden_activation](self.gate(x)) * self.up(x)
        return self.down(self.dropout(x, deterministic))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each between two norms and added to what it read."""

    config: StackConfig
    rotation: Rotation
    reach: tuple[int, int] | None
    """How many tokens before and after itself a token sees; None for all."""
    rates: DropoutRates
    dtype: DTypeLike
    query_key_norms: bool = False

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        self.self_attention_norm = norm(config, dtype)
        self.self_attention = Attention(
            config, self.rotation, self.rates, dtype, self.query_key_norms
        )
        self.self_attention_post_norm = norm(config, dtype)
        self.feed_forward_norm = norm(config, dtype)
        self.feed_forward = FeedForward(config, self.rates, dtype)
        self.feed_forward_post_norm = norm(config, dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        positions = jnp.arange(x.shape[1])[None]
        normed = self.self_attention_norm(x)
        if deterministic:
            attended = self.self_attention.of_documents(normed, positions, mask, self.reach)
        else:
            seen = mask[:, None, :]
            if self.reach is not None:
                seen = seen & within(self.reach, positions[:, None, :] - positions[:, :, None])
            source = Source(self.self_attention.project(normed, positions), seen)
            attended = self.self_attention(normed, positions, [source], deterministic)
        x = x + self.dropout(self.self_attention_post_norm(attended), deterministic)
        forwarded = self.feed_forward(self.feed_forward_norm(x), deterministic)
        return x + self.dropout(self.feed_forward_post_norm(forwarded), deterministic)


class Encoder(nn.Module):
    """Reads the scaled embeddings of documents."""

    config: StackConfig
    reach: tuple[int, int]
    """In layers that see a window: how many tokens before and after itself a token sees."""
    rates: DropoutRates
    dtype: DTypeLike
    query_key_norms: bool = False

    def setup(self) -> None:
        config = self.config
        self.layers = [
            EncoderLayer(
                config,
                config.rotation(i),
                self.reach if kind == SLIDING else None,
                self.rates,
                self.dtype,
                self.query_key_norms,
            )
            for i, kind in enumerate(config.layer_types)
        ]
        self.final_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], deterministic: bool
    ) -> Float[Array, "B S D"]:
        x = self.dropout(x, deterministic)
        for layer in self.layers:
            x = layer(x, mask, deterministic)
        return self.dropout(self.final_norm(x), deterministic)


class Visible(NamedTuple):
    """Which of a prompt's own tokens new ones see, in one type of layer."""

    present: Bool[Array, "B L L"]
    past: Bool[Array, "B L M"] | Bool[Array, "B 1 M"] | None

    def sources(self, present: KeyValue, past: KeyValue | None) -> list[Source]:
        """What a layer's self-attention reads: the past, if there is one, and the new tokens."""
        remembered = [] if past is None else [Source(past, self.past)]
        return [*remembered, Source(present, self.present)]


def visible(
    token_mask: Bool[Array, "B L"], slots: Int[Array, "#B L"], past: Past | None, window: int
) -> dict[str, Visible]:
    """By the type of layer. In a window a token sees itself and `window - 1` before it."""
    reach = (window - 1, 0)
    present = causal_mask(slots.shape[1]) & token_mask[:, None, :]
    near = within(reach, slots[:, None, :] - slots[:, :, None])
    if past is None:
        return {FULL: Visible(present, None), SLIDING: Visible(present & near, None)}
    remembered = past.mask[:, None, :]
    near_past = within(reach, jnp.arange(past.mask.shape[1]) - slots[:, :, None])
    return {
        FULL: Visible(present, remembered),
        SLIDING: Visible(present & near, remembered & near_past),
    }


class Decoder(nn.Module):
    """Reads prompts and writes answers, in layers of a family's own."""

    layer_type: type[nn.Module]
    config: StackConfig
    rates: DropoutRates
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        self.layers = [
            self.layer_type(config, config.rotation(i), self.rates, self.dtype)
            for i in range(config.num_hidden_layers)
        ]
        self.final_norm = norm(config, self.dtype)
        self.dropout = nn.Dropout(self.rates.hidden)

    def project_cross_attention(
        self, encoder_output: Float[Array, "B S D"]
    ) -> tuple[KeyValue, ...]:
        return tuple(layer.project_document(encoder_output) for layer in self.layers)

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
        seen = visible(token_mask, slots, past, self.config.sliding_window)
        x = self.dropout(x, deterministic)
        present = []
        for i, (layer, kind) in enumerate(zip(self.layers, self.config.layer_types, strict=True)):
            document = Source(cross_attention[i], document_mask[:, None, :])
            remembered = None if past is None else past.layers[i]
            x, new = layer(x, positions, seen[kind], remembered, document, deterministic)
            present.append(new)
        return self.dropout(self.final_norm(x), deterministic), tuple(present)


def bounded(logits: Float[Array, "*batch V"], config: StackConfig) -> Float[Array, "*batch V"]:
    """Logits after the soft-capping that the configuration asks for, if any."""
    bound = config.final_logit_softcapping
    return logits if bound is None else capped(logits, bound)


def stack_tensors(
    config: StackConfig, stack: str, attentions: Mapping[str, str], query_key_norms: bool = False
) -> dict[str, TensorPlace]:
    """Where the tensors of one stack stand, but for its embeddings.

    attentions: Hugging Face's names of each layer's attentions, and ours.
    """
    places = {f"model.{stack}.norm.weight": TensorPlace((stack, "final_norm", "scale"))}
    kernels = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
    feed_forward = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    for i in range(config.num_hidden_layers):
        name, path = f"model.{stack}.layers.{i}", (stack, f"layers_{i}")
        blocks = {theirs: (ours, kernels) for theirs, ours in attentions.items()}
        blocks["mlp"] = ("feed_forward", feed_forward)
        for block, (ours, parts) in blocks.items():
            norm_name = "feedforward" if block == "mlp" else block
            for when, suffix in (("pre", "norm"), ("post", "post_norm")):
                place = TensorPlace((*path, f"{ours}_{suffix}", "scale"))
                places[f"{name}.{when}_{norm_name}_layernorm.weight"] = place
            for letter, part in parts.items():
                place = TensorPlace((*path, ours, part, "kernel"), transposed=True)
                places[f"{name}.{block}.{letter}.weight"] = place
            if query_key_norms and block != "mlp":
                for letter, part in (("q", "query"), ("k", "key")):
                    place = TensorPlace((*path, ours, f"{part}_norm", "scale"))
                    places[f"{name}.{block}.{letter}_norm.weight"] = place
    return places

"""Configurations of T5Gemma, and what T5Gemma 2's has of them: stacks, rotations, tokens."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

from pid_jax.errors import UserError
from pid_jax.models import config_reading
from pid_jax.models.layers import ACTIVATIONS
from pid_jax.models.positions import Rotation

FULL, SLIDING = "full_attention", "sliding_attention"
"""The types of layers: those that see everything, and those that see a window."""


@dataclasses.dataclass(frozen=True)
class GemmaStackConfig:
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
) -> GemmaStackConfig:
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
    read = config_reading.read_fields(
        GemmaStackConfig, scalars, {**defaults, **special}, within=inside
    )
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


def read_rotation(parameters: object, key: str, theta: object) -> Rotation:
    """Reads rotary positions. theta: where they have no `rope_theta`."""
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise UserError(f'config.json: "{key}" must be of type dict, but is {parameters!r}')
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    config_reading.check_supported(f"{key}.rope_type", kind, ["default", "linear"])
    values = {
        "rope_theta": parameters.get("rope_theta", theta),
        "factor": parameters.get("factor") if kind == "linear" else 1.0,
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
    ids = {}
    for name, names in {
        "pad_token_id": ("pad_token_id",),
        "eos_token_id": ("eos_token_id",),
        "decoder_start_token_id": ("decoder_start_token_id", "bos_token_id"),
    }.items():
        values = [part.get(one) for one in names for part in (config, decoder)]
        ids[name] = next((value for value in values if value is not None), None)
    return ids


class DropoutRates(NamedTuple):
    hidden: float
    attention: float
    """Of the softmax's output."""


HEAD = "lm_head.out_proj.weight"


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig:
    """The values of a T5Gemma `config.json` that shape the computation, by their names there."""

    encoder: GemmaStackConfig
    decoder: GemmaStackConfig
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
            rotation = read_rotation(
                rope, f"{key}.rope_parameters", part.get("rope_theta", 10000.0)
            )
            defaults = {
                "vocab_size": config.get("vocab_size", 256000),
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            }
            stacks[key] = read_stack(part, key, defaults, (rotation, rotation), sliding_pattern=2)
        vocabularies = stacks["encoder"].vocab_size, stacks["decoder"].vocab_size
        if vocabularies[0] != vocabularies[1]:
            raise UserError(
                'config.json: "encoder.vocab_size" and "decoder.vocab_size" must agree, but are '
                f"{vocabularies[0]} and {vocabularies[1]}"
            )
        others = {key: value for key, value in config.items() if key not in stacks}
        others |= special_token_ids(config, config_reading.section(config, "decoder"))
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
                "rope_parameters": write_rotation(stack.full_rotation),
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
        """The configuration that fits a checkpoint with these tensors.

        A checkpoint with a head of its own is untied, whatever its `config.json` says.
        """
        return dataclasses.replace(self, tie_word_embeddings=HEAD not in names)

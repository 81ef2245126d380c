"""T5Gemma 2's configuration: the text parts of a `config.json` that also has a vision tower's."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pid_jax.errors import UserError
from pid_jax.models import config_reading
from pid_jax.models.positions import Rotation
from pid_jax.models.t5gemma.configuration import (
    FULL,
    SLIDING,
    DropoutRates,
    GemmaStackConfig,
    read_rotation,
    read_stack,
    special_token_ids,
    write_rotation,
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

    encoder: GemmaStackConfig
    decoder: GemmaStackConfig
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
        for (key, part), section in zip(
            parts.items(), ("encoder.text_config", "decoder"), strict=True
        ):
            defaults = {
                "vocab_size": config.get("vocab_size", 262208),
                "max_position_embeddings": 131072,
            }
            pattern = part.get("sliding_window_pattern", 6)
            read = read_stack(part, section, defaults, _rotations(part, section), pattern)
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
            value = config.get(name)
            config_reading.check_supported(name, True if value is None else value, [True])
        others = {key: value for key, value in config.items() if key not in stacks}
        others |= {name: of_encoder.get(name) for name in ("boi_token_index", "eoi_token_index")}
        others |= special_token_ids(config, parts["decoder"])
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
                    FULL: write_rotation(stack.full_rotation),
                    SLIDING: write_rotation(stack.sliding_rotation),
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
        read_rotation(full, f"{key}.rope_parameters.{FULL}", part.get("rope_theta", 1e6)),
        read_rotation(
            written.get(SLIDING),
            f"{key}.rope_parameters.{SLIDING}",
            part.get("rope_local_base_freq", 1e4),
        ),
    )

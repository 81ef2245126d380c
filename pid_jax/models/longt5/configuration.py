"""LongT5's configuration: T5's, and what its encoder attends to."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from pid_jax.models import config_reading
from pid_jax.models.t5.configuration import T5LikeConfig

ATTENTION_NAMES = {
    "local": "LocalSelfAttention",
    "transient-global": "TransientGlobalSelfAttention",
}
"""What transformers calls the encoder's attention, by `encoder_attention_type`."""


@dataclasses.dataclass(frozen=True)
class LongT5Config(T5LikeConfig):
    """The values of a LongT5 `config.json` that shape the computation, by their names there."""

    model_type: str = "longt5"
    encoder_attention_type: str = "local"
    local_radius: int = 127
    global_block_size: int = 16

    architecture: ClassVar[Mapping[str, str]] = {"longt5": "LongT5ForConditionalGeneration"}

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LongT5Config":
        """Reads a `config.json`. Raises `UserError` for an unsupported value, by its key."""
        read = cls.read(config, {}, scales=True)
        config_reading.check_supported(
            "encoder_attention_type", read.encoder_attention_type, ATTENTION_NAMES
        )
        config_reading.check_positive(read, "local_radius", "global_block_size")
        return read

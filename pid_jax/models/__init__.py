"""Architecture families, by the `model_type` of a Hugging Face `config.json`."""

from pid_jax.models.protocol import Config, EncoderDecoder, Family, Params
from pid_jax.models.registry import (
    abstract_params,
    build,
    config_from_hf,
    family_of,
    init_params,
    logical_axes,
    model_types,
    supported,
    table,
    why_unreadable,
)

__all__ = [
    "Config",
    "EncoderDecoder",
    "Family",
    "Params",
    "abstract_params",
    "build",
    "config_from_hf",
    "family_of",
    "init_params",
    "logical_axes",
    "model_types",
    "supported",
    "table",
    "why_unreadable",
]

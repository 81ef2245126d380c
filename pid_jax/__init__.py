"""Prompt-in-decoder: encode a document once, decode every prompt against it in parallel."""

from pid_jax import metrics, models, tasks
from pid_jax.decoding.options import GenerationOptions
from pid_jax.decoding.patterns import JsonSchema, Regex
from pid_jax.decoding.report import DecodingReport
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation, Partial, TokenLogprob

__all__ = [
    "DecodingReport",
    "Generation",
    "GenerationOptions",
    "JsonSchema",
    "Partial",
    "PidModel",
    "Regex",
    "TokenLogprob",
    "UserError",
    "metrics",
    "models",
    "tasks",
]
__version__ = "0.1.0"

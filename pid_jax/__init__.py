"""Prompt-in-decoder: encode a document once, decode every prompt against it in parallel."""

from pid_jax import metrics, models, tasks
from pid_jax.errors import UserError
from pid_jax.model import Generation, PidModel

__all__ = ["Generation", "PidModel", "UserError", "metrics", "models", "tasks"]
__version__ = "0.1.0"

"""T5 and its relatives: T5, T5 1.1, Flan-T5, ByT5, mT5 and UMT5."""

from pid_jax.models.t5.configuration import T5Config
from pid_jax.models.t5.huggingface import FAMILY
from pid_jax.models.t5.modules import T5

__all__ = ["FAMILY", "T5", "T5Config"]

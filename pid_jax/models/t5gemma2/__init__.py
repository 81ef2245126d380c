"""T5Gemma 2: Gemma 3 made into an encoder-decoder. Text only."""

from pid_jax.models.t5gemma2.configuration import T5Gemma2Config
from pid_jax.models.t5gemma2.huggingface import FAMILY
from pid_jax.models.t5gemma2.modules import T5Gemma2

__all__ = ["FAMILY", "T5Gemma2", "T5Gemma2Config"]

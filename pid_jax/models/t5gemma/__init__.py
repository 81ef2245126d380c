"""T5Gemma: Gemma 2 made into an encoder-decoder. Encoder and decoder may differ in size."""

from pid_jax.models.t5gemma.configuration import T5GemmaConfig
from pid_jax.models.t5gemma.huggingface import FAMILY
from pid_jax.models.t5gemma.modules import T5Gemma

__all__ = ["FAMILY", "T5Gemma", "T5GemmaConfig"]

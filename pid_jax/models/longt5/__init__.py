"""LongT5: T5 whose encoder attends locally, and to summaries of blocks of the whole document."""

from pid_jax.models.longt5.configuration import LongT5Config
from pid_jax.models.longt5.huggingface import FAMILY
from pid_jax.models.longt5.modules import LongT5

__all__ = ["FAMILY", "LongT5", "LongT5Config"]

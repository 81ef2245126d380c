"""BART, mBART and mBART-50: mBART is BART with norms before each part and after the last."""

from pid_jax.models.bart.configuration import BartConfig, MBartConfig
from pid_jax.models.bart.huggingface import FAMILY, MBART_FAMILY
from pid_jax.models.bart.modules import BartLike

__all__ = ["FAMILY", "MBART_FAMILY", "BartConfig", "BartLike", "MBartConfig"]

"""PEGASUS: BART with norms before each part and sinusoidal positions."""

from pid_jax.models.pegasus.configuration import PegasusConfig
from pid_jax.models.pegasus.huggingface import FAMILY
from pid_jax.models.pegasus.modules import BartLike

__all__ = ["FAMILY", "BartLike", "PegasusConfig"]

"""LED: BART whose encoder attends within windows, and to a few global tokens."""

from pid_jax.models.led.configuration import LEDConfig
from pid_jax.models.led.huggingface import FAMILY
from pid_jax.models.led.modules import LED

__all__ = ["FAMILY", "LED", "LEDConfig"]

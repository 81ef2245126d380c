"""Former place of `pid_jax.prediction.answering` and of the writer of answered lines."""

from pid_jax.evaluation.predictions import KEYS as OURS
from pid_jax.evaluation.predictions import answered
from pid_jax.prediction.answering import Counts, Output, answer_lines

__all__ = ["OURS", "Counts", "Output", "answer_lines", "answered"]

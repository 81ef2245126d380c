"""Answers to every prompt of a JSON-lines file, streamed: bounded memory, exact resume."""

from pid_jax.prediction.file import predict_file
from pid_jax.prediction.settings import Settings
from pid_jax.prediction.summary import Summary

__all__ = ["Settings", "Summary", "predict_file"]

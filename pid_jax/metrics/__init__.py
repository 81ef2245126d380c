"""Metrics as plain functions of text, independent of models and data sets."""

from pid_jax.metrics.joint_goal_accuracy import joint_goal_accuracy
from pid_jax.metrics.rouge import rouge
from pid_jax.metrics.schema_guided import schema_guided
from pid_jax.metrics.squad import squad

__all__ = ["joint_goal_accuracy", "rouge", "schema_guided", "squad"]

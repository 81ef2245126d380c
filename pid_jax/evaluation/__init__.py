"""A task's score over a checkpoint, or over predictions made elsewhere, and its files."""

from collections.abc import Sequence

from pid_jax.evaluation.files import FILES, METRICS, PREDICTIONS, REPORT, write
from pid_jax.evaluation.model_evaluation import check_any, evaluate
from pid_jax.evaluation.predictions import read_predictions
from pid_jax.scoring import scored

__all__ = [
    "FILES",
    "METRICS",
    "PREDICTIONS",
    "REPORT",
    "check_any",
    "evaluate",
    "main",
    "read_predictions",
    "scored",
    "write",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `pid-jax eval`."""
    from pid_jax.commands import evaluate as command

    command.main(arguments, program="python -m pid_jax.evaluation")

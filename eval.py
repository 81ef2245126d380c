"""Scores a checkpoint, or given predictions, on a task: the same program as `pid-jax eval`."""

from pid_jax.commands import evaluate


def main(arguments: list[str] | None = None) -> None:
    """The command `pid-jax eval`."""
    evaluate.main(arguments, program="python eval.py")


if __name__ == "__main__":
    main()

"""Answers every prompt of a JSON-lines file: the same program as `pid-jax predict`."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `pid-jax predict`."""
    from pid_jax.commands import predict as command

    command.main(arguments, program="python -m pid_jax.predict")


if __name__ == "__main__":
    main()

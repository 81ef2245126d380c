"""Trains a model as a config file says: the same program as `pid-jax train`."""

from pid_jax.commands import train


def main(arguments: list[str] | None = None) -> None:
    """The command `pid-jax train`."""
    train.main(arguments, program="python train.py")


if __name__ == "__main__":
    main()

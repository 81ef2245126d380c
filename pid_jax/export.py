"""A checkpoint written in the Hugging Face layout; also `python -m pid_jax.export`."""

from collections.abc import Sequence
from pathlib import Path

from pid_jax.checkpoints import contents
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel


def export(checkpoint: str | Path, output: str | Path, *, overwrite: bool = False) -> None:
    """Loads `checkpoint` as `PidModel.from_pretrained` does and writes it to `output`.

    Raises UserError for a directory that is not empty, unless `overwrite`: then files of the
    same names, older weights and an older tokenizer are replaced, and everything else is left
    alone.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: name a directory to export to")
    if contents.is_run(output):
        raise UserError(f"{output} is a training run: name another directory to export to")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UserError(
            f"{output} is not empty: name another directory, or pass --overwrite to replace "
            "the model in it"
        )
    model = PidModel.from_pretrained(checkpoint, dtype="auto")
    model.save_pretrained(output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `pid-jax export`."""
    from pid_jax.commands import export as command

    command.main(arguments, program="python -m pid_jax.export")


if __name__ == "__main__":
    main()

"""Writes a checkpoint in the Hugging Face layout: `python -m pid_jax.export --help`."""

from collections.abc import Sequence
from pathlib import Path

from pid_jax.checkpoints import contents
from pid_jax.command_line import checkpoint_parser, user_errors
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel

DESCRIPTION = """\
Writes a trained model as a Hugging Face directory: config.json, generation_config.json,
model.safetensors and the tokenizer's files. transformers loads it with
AutoModelForSeq2SeqLM.from_pretrained and AutoTokenizer.from_pretrained. The weights keep their
dtype.
"""


def export(checkpoint: str | Path, output: str | Path, *, overwrite: bool = False) -> None:
    """Loads `checkpoint` as `PidModel.from_pretrained` does and writes it to `output`.

    Raises UserError if `output` holds anything already, unless `overwrite`: then files of the
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
    parser = checkpoint_parser("python -m pid_jax.export", DESCRIPTION)
    parser.add_argument(
        "--output", required=True, metavar="DIRECTORY", type=Path, help="the directory to write"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a model that is already in the directory",
    )
    options = parser.parse_args(arguments)
    with user_errors():
        export(options.checkpoint, options.output, overwrite=options.overwrite)
    print(f"{options.output}: " + ", ".join(sorted(file.name for file in options.output.iterdir())))


if __name__ == "__main__":
    main()

"""`pid-jax export`: writes a checkpoint in the Hugging Face layout."""

from collections.abc import Sequence
from pathlib import Path

from pid_jax.command_line import add_checkpoint, make_parser, user_errors

DESCRIPTION = """\
Writes a trained model as a Hugging Face directory: config.json, generation_config.json,
model.safetensors and the tokenizer's files. transformers loads it with
AutoModelForSeq2SeqLM.from_pretrained and AutoTokenizer.from_pretrained. The dtype of the weights
stays the same. An adapter is merged into the model. With --adapter, the adapter alone is written:
adapter_config.json and adapter_model.safetensors, which peft loads with PeftModel.from_pretrained.
"""


def main(argv: Sequence[str] | None = None, *, program: str = "pid-jax export") -> None:
    """Exports; exits with status 2 after a mistake in the command or the checkpoint."""
    parser = make_parser(program, DESCRIPTION, allow_abbrev=True)
    add_checkpoint(parser, required=True)
    parser.add_argument(
        "--output", required=True, metavar="DIRECTORY", type=Path, help="the directory to write"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a model that is already in the directory",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write only the adapter of a training run, in the layout of PEFT",
    )
    options = parser.parse_args(argv)

    from pid_jax.export import export  # imports JAX, which takes seconds that --help should not

    with user_errors():
        export(
            options.checkpoint,
            options.output,
            overwrite=options.overwrite,
            adapter_only=options.adapter,
        )
    print(f"{options.output}: " + ", ".join(sorted(file.name for file in options.output.iterdir())))

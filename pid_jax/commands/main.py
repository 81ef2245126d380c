"""`pid-jax`: one program with a subcommand for each command."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("pid_jax.commands.train", "train a model as a config says"),
    "eval": ("pid_jax.commands.evaluate", "score a checkpoint, or predictions, on a task"),
    "predict": ("pid_jax.commands.predict", "answer every prompt of a JSON-lines file"),
    "export": ("pid_jax.commands.export", "write a checkpoint in the Hugging Face layout"),
    "prepare": ("pid_jax.commands.prepare", "convert a task's source to a data set"),
    "compile-ahead": (
        "pid_jax.commands.compile_ahead",
        "estimate a program on an accelerator that this machine lacks",
    ),
}


def main(argv: Sequence[str] | None = None, *, program: str = "pid-jax") -> None:
    """Runs the command that the first argument names. Its exit status is the command's own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} COMMAND [--FLAG=VALUE ...]",
        description="Prompt-in-decoder models: encode a document once, decode all of its prompts.",
        epilog="commands:\n"
        + "".join(f"  {name:<15}{summary}\n" for name, (_, summary) in COMMANDS.items())
        + f"\n`{program} COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    command = parser.parse_args(arguments[:1]).command
    module, _ = COMMANDS[command]
    importlib.import_module(module).main(arguments[1:], program=f"{program} {command}")


def _version() -> str:
    import pid_jax

    return f"pid_jax {pid_jax.__version__}"

"""What the command lines share: options, and mistakes in one sentence."""

import argparse
import ast
import dataclasses
import inspect
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, get_args

from pid_jax.errors import UserError

# transformers is here for its tokenizers: its advice to install PyTorch would mislead.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def checkpoint_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with --checkpoint: whatever `PidModel.from_pretrained` loads."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a training workdir (its best checkpoint), a Hugging Face directory or a hub id",
    )
    return parser


def add_fields(parser: "argparse._ActionsContainer", options: type) -> None:
    """Adds an option for each field of a dataclass to a parser, or a group of one.

    `max_new_tokens: int = 32` makes `--max-new-tokens N`; the text below the field is its help.
    A bool makes a flag, a sequence an option that may be given again and again, and
    `bool | Literal[...]` a choice between true, false and the others.
    """
    documentation = _documentation(options)
    for field in dataclasses.fields(options):
        text = documentation.get(field.name, "").replace("%", "%%")
        parser.add_argument("--" + field.name.replace("_", "-"), **_argument(field, text))


def _argument(field: "dataclasses.Field[Any]", text: str) -> dict[str, Any]:
    default = field.default
    if field.type is bool:
        return {"action": "store_true", "help": text}
    if field.type == int | None:
        return {"type": int, "metavar": "N", "help": text}
    if field.type in (int, float):
        text += f" (default: {default:g})"
        metavar = "N" if field.type is int else "X"
        return {"type": field.type, "metavar": metavar, "default": default, "help": text}
    if default == ():
        text += " May be given more than once."
        return {"action": "append", "metavar": "TEXT", "default": [], "help": text}
    _, literal = get_args(field.type)
    named = {"true": True, "false": False} | {name: name for name in get_args(literal)}

    def choice(name: str) -> bool | str:
        if name not in named:
            raise argparse.ArgumentTypeError(f"{name!r}: choose from {', '.join(named)}")
        return named[name]

    text += f" (default: {str(default).lower()})"
    return {"type": choice, "metavar": f"{{{','.join(named)}}}", "default": default, "help": text}


def _documentation(options: type) -> dict[str, str]:
    """The texts that stand below a class's fields; none where the source is not at hand."""
    try:
        source = textwrap.dedent(inspect.getsource(options))
    except OSError:
        return {}
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, below in pairwise(definition.body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
    return texts


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Adds --option NAME=VALUE, as often as there are options of a task to give."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the task, as config.data.options has it; may be given more than once",
    )


def task_options(given: Iterable[str]) -> dict[str, Any]:
    """What --option was given: values are read as Python writes them, or else are texts."""
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UserError(f"--option={text}: expected NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


@contextmanager
def user_errors() -> Iterator[None]:
    """Prints a UserError as `error: ...` on standard error and exits with status 2."""
    try:
        yield
    except UserError as error:
        notes = getattr(error, "__notes__", [])
        print(f"error: {error}", *notes, sep="\n", file=sys.stderr)
        raise SystemExit(2) from None

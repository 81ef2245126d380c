"""What the command lines share: options, and mistakes in one sentence."""

import argparse
import ast
import dataclasses
import inspect
import io
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
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


def add_fields(parser: "argparse._ActionsContainer", options: type, otherwise: str = "") -> None:
    """Adds an option for each field of a dataclass to a parser, or a group of one.

    `max_new_tokens: int = 32` makes `--max-new-tokens N`; the text below the field is its help.
    A bool makes a pair of flags, a sequence an option that may be given again and again, one of
    token ids with commas between, and `bool | Literal[...]` a choice between true, false and the
    others. What is not given is None. otherwise: what comes before the field's default then, for
    the help.
    """
    documentation = _documentation(options)
    for field in dataclasses.fields(options):
        text = documentation.get(field.name, "").replace("%", "%%")
        parser.add_argument(
            "--" + field.name.replace("_", "-"), **_argument(field, text, otherwise)
        )


def _argument(field: "dataclasses.Field[Any]", text: str, otherwise: str) -> dict[str, Any]:
    default = field.default
    if field.type == int | None:
        return {"type": int, "metavar": "N", "help": text}
    if default == ():
        text += " May be given more than once."
        item: dict[str, Any] = {"type": str, "metavar": "TEXT"}
        if field.type == Sequence[int]:
            item = {"type": int, "metavar": "ID"}
        elif field.type == Sequence[Sequence[int]]:
            item = {"type": _token_ids, "metavar": "ID,ID"}
        return {"action": "append", "help": text, **item}
    shown = f"{default:g}" if type(default) in (int, float) else str(default).lower()
    text += f" (default: {otherwise}{shown})"
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if field.type in (int, float):
        metavar = "N" if field.type is int else "X"
        return {"type": field.type, "metavar": metavar, "help": text}
    _, literal = get_args(field.type)
    named = {"true": True, "false": False} | {name: name for name in get_args(literal)}

    def choice(name: str) -> bool | str:
        if name not in named:
            raise argparse.ArgumentTypeError(f"{name!r}: choose from {', '.join(named)}")
        return named[name]

    return {"type": choice, "metavar": f"{{{','.join(named)}}}", "help": text}


def _token_ids(text: str) -> list[int]:
    try:
        return [int(token) for token in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: token ids with commas between") from None


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
    """Prints a UserError as `error: ...` on standard error and exits with status 2.

    From then on characters that standard output or error cannot encode are printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        notes = getattr(error, "__notes__", [])
        print(f"error: {error}", *notes, sep="\n", file=sys.stderr)
        raise SystemExit(2) from None

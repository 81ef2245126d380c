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


class _Parser(argparse.ArgumentParser):
    """Flags are spelled with hyphens; the spelling with underscores, --data_dir, works as well.

    Overrides of a configuration, --config.KEY=VALUE, are left as they are.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_hyphens(text) for text in arguments], namespace)


def _with_hyphens(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name.startswith("--config."):
        return argument
    return name.replace("_", "-") + equals + value


def make_parser(
    program: str,
    description: str,
    *,
    usage: str | None = None,
    epilog: str | None = None,
    allow_abbrev: bool = False,
) -> argparse.ArgumentParser:
    """A parser whose help shows `description` as it is, with `program` for the word PROGRAM.

    usage: what follows the program's name in the usage line; by default argparse lists the flags.
    """
    return _Parser(
        prog=program,
        usage=None if usage is None else f"{program} {usage}".replace("%", "%%"),
        description=description.replace("PROGRAM", program),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
    )


def add_checkpoint(parser: "argparse._ActionsContainer", *, required: bool = False) -> None:
    """Adds --checkpoint: whatever `PidModel.from_pretrained` loads."""
    parser.add_argument(
        "--checkpoint",
        required=required,
        metavar="PATH",
        help="a training workdir (its best checkpoint), one of its checkpoints "
        "(WORKDIR/checkpoints/STEP), a Hugging Face directory or a hub id",
    )


def add_weights(parser: "argparse._ActionsContainer") -> None:
    """Adds --weights, an argument of `PidModel.from_pretrained`."""
    parser.add_argument(
        "--weights",
        choices=("int8",),
        help="int8: kernels and token embeddings in 8 bits, a quarter of the memory of float32; "
        "answers and scores change slightly (default: those of the checkpoint)",
    )


def add_mesh(parser: "argparse._ActionsContainer") -> None:
    """Adds --mesh, an argument of `PidModel.from_pretrained`."""
    parser.add_argument(
        "--mesh",
        type=_mesh_sizes,
        metavar="AXIS=N[,AXIS=N]",
        help="split the parameters over all devices, for a model that does not fit one: data, fsdp "
        "and tensor are axes, such as --mesh=tensor=4; a size of -1 takes the other devices "
        "(default: a copy of the model on each device)",
    )


def _mesh_sizes(text: str) -> dict[str, int]:
    from pid_jax.sharding import MESH_AXES  # imports JAX

    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or axis in sizes or not size.removeprefix("-").isdecimal():
            raise argparse.ArgumentTypeError(
                f"{text!r}: write AXIS=N, with commas between, for axes of {', '.join(MESH_AXES)}"
            )
        sizes[axis] = int(size)
    # `make_mesh` gives the devices that are left to data, here to the parameters.
    return {"data": 1, **({} if "fsdp" in sizes or "tensor" in sizes else {"tensor": -1}), **sizes}


def add_fields(parser: "argparse._ActionsContainer", options: type, otherwise: str = "") -> None:
    """Adds an option for each field of a dataclass to a parser, or a group of one.

    `max_new_tokens: int = 32` makes `--max-new-tokens N`; the text below the field is its help.
    A bool makes a pair of flags, a sequence an option that may be repeated, a sequence of token ids
    takes them with commas between, and `bool | Literal[...]` is a choice between true, false and
    the others. The value of an absent option is None. otherwise: the text before the field's
    default in the help.
    """
    documentation = _documentation(options)
    for field in with_flags(options):
        text = documentation.get(field.name, "").replace("%", "%%")
        parser.add_argument(
            "--" + field.name.replace("_", "-"), **_argument(field, text, otherwise)
        )


def with_flags(options: type) -> "list[dataclasses.Field[Any]]":
    """The fields of a dataclass that a command can set: `metadata["flag"]` may exclude one."""
    fields = dataclasses.fields(options)
    return [field for field in fields if field.metadata.get("flag", True)]


def _argument(field: "dataclasses.Field[Any]", text: str, otherwise: str) -> dict[str, Any]:
    default = field.default
    if field.type == int | None:
        return {"type": int, "metavar": "N", "help": text}
    if default == ():
        text += " May be repeated."
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
    """Adds --option NAME=VALUE, which may be repeated: the options of a task."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the task, as config.data.options has it; may be repeated",
    )


def task_options(texts: Iterable[str]) -> dict[str, Any]:
    """The values of --option: Python literals where they are such, texts otherwise."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals:
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

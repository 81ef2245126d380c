"""Config files: where a name or a path leads, and the arguments that a file takes.

`--config` takes the path of a Python file with `get_config()`, or the name of one of this
project's: `multiwoz` stands for `configs/multiwoz.py`. An argument for `get_config` follows a
colon: `multiwoz:21,t5_base`.
"""

import importlib.util
import inspect
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from pid_jax.errors import UserError

_PACKAGE = Path(__file__).parent.parent
_CHECKOUT = _PACKAGE.parent
FOLDERS = (
    _PACKAGE / "configs",
    *([_CHECKOUT / "configs"] if (_CHECKOUT / "train.py").is_file() else []),
)
"""An installed package has the configs inside it, a checkout beside it."""

FORMER_NAMES = {
    **{
        f"multiwoz{release}_{size}": f"multiwoz:{release},{size}"
        for release in ("20", "21", "22", "23", "24")
        for size in ("scratch", "t5_base")
    },
    "multiwoz21_t5_large": "multiwoz:21,t5_large",
    **{
        f"squad{version}_{size}": f"squad:{version},{size}"
        for version in ("1", "2")
        for size in ("scratch", "t5_base")
    },
    **{
        f"{task}_{size}": f"{task}:{size}"
        for task in ("sgd", "radqa")
        for size in ("scratch", "t5_base")
    },
    **{
        f"aci_bench_{size}": f"aci_bench:{size}"
        for size in ("scratch", "t5_base", "led_base", "bart_large")
    },
}
"""Files that a file with an argument replaces. Their names go on working."""


def names() -> list[str]:
    """The names of this project's config files."""
    return sorted(
        {path.stem for folder in FOLDERS for path in folder.glob("[!_]*.py") if path.is_file()}
    )


def find(config: str | Path) -> tuple[Path, str]:
    """The file and the argument ("" for none) that a value of `--config` stands for.

    A file that exists is taken as it is. Otherwise the name decides: `quickstart`,
    `configs/quickstart.py` and the former names, such as `configs/multiwoz21_t5_base.py`, lead to
    this project's files from any working directory. Raises UserError, with the names that exist,
    for anything else.
    """
    place, _, argument = str(config).partition(":")
    path = Path(place)
    if path.is_file():
        return path, argument
    name = path.stem if path.suffix == ".py" else path.name
    if path.parent == Path() or path.parent.name == "configs":
        if not argument:
            name, _, argument = FORMER_NAMES.get(name, name).partition(":")
        for folder in FOLDERS:
            if (folder / f"{name}.py").is_file() and not name.startswith("_"):
                return folder / f"{name}.py", argument
    raise UserError(
        f"config file {place} does not exist. Give the path of a Python file with get_config(), or "
        f"one of the names {', '.join(names())}"
    )


def read_argument(argument: str, **choices: Sequence[str]) -> list[str]:
    """One value of each kind from an argument such as "21,t5_base", in any order.

    `choices` has the values of each kind by the kind's name. The first is the default. Raises
    UserError, with all values of each kind, for an unknown value or two values of one kind.

    >>> read_argument("t5_base", RELEASE=("21", "24"), SIZE=("scratch", "t5_base"))
    ['21', 't5_base']
    """
    values: dict[str, str] = {}
    for text in filter(None, argument.split(",")):
        kind = next((kind for kind, known in choices.items() if text.strip() in known), None)
        if kind is None or kind in values:
            what = f"{text!r} is unknown" if kind is None else f"there are two values of {kind}"
            listed = "; ".join(f"{kind}: {', '.join(known)}" for kind, known in choices.items())
            raise UserError(
                f"config argument {argument!r}: {what}. Write {','.join(choices)} with {listed}"
            )
        values[kind] = text.strip()
    return [values.get(kind, known[0]) for kind, known in choices.items()]


def run(config: str | Path) -> tuple[ConfigDict, Path]:
    """The value of the file's `get_config()`, and the file. Raises UserError naming the file."""
    file, argument = find(config)
    try:
        get_config = _module(file).get_config
        if argument and not inspect.signature(get_config).parameters:
            raise UserError(
                f"config file {file}: it takes no argument, but {argument!r} follows the colon"
            )
        content = get_config(argument) if argument else get_config()
    except (SyntaxError, AttributeError, KeyError, TypeError, ImportError, NameError) as error:
        raise UserError(f"config file {file}: {type(error).__name__}: {error}") from error
    if not isinstance(content, ConfigDict):
        raise UserError(
            f"config file {file}: get_config() must return an ml_collections ConfigDict"
        )
    return content, file


def _module(file: Path) -> ModuleType:
    # The name is unique, so that two files called config.py do not share an entry of sys.modules.
    spec = importlib.util.spec_from_file_location(f"config_{uuid.uuid4().hex}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {file} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Import of users' own tasks and metrics, named as "module:name"."""

import importlib
from collections.abc import Callable
from typing import Any

from pid_jax.errors import UserError


def imported(name: str, what: str) -> Callable[..., Any]:
    """The class or function called `name`.

    what: its role, the first word of a message. Raises UserError if it cannot be imported or is
    not callable.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # the last two for names like "", ".x"
        raise UserError(
            f"{what} {name}: the module {module_name!r} cannot be imported ({error}): put the "
            "folder that holds it on PYTHONPATH"
        ) from error
    member: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(member):
        raise UserError(f"{what} {name}: {module_name} has no class or function {attribute!r}")
    return member

"""What users bring along is named as "module:name": tasks, and functions that score."""

import importlib
from collections.abc import Callable
from typing import Any

from pid_jax.errors import UserError


def imported(name: str, what: str) -> Callable[..., Any]:
    """The class or function called `name`; `what` it is to be begins the message of a UserError."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # also of names like "" and ".x"
        raise UserError(
            f"{what} {name}: the module {module_name!r} cannot be imported ({error}): put the "
            "folder that holds it on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(f"{what} {name}: {module_name} has no class or function {attribute!r}")
    return found

"""How tests compile: quickly, because they run many small programs a few times each.

`conftest.py` calls `compile_quickly` before anything imports JAX. Commands that tests run in
processes of their own compile quickly, too. The mark `optimised` and `compile_fully` give a
program as users have it, `users_environment` a process.
"""

import os
from importlib.metadata import version
from typing import Any

# XLA's fusion emitters take more than half of the time of a compilation. From jaxlib 0.11 on there
# is no flag for them, and XLA aborts at a flag that it does not know.
_HAS_FLAG = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
_FLAG = "--xla_cpu_use_fusion_emitters=false" if _HAS_FLAG else ""
_VARIABLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def compile_quickly() -> None:
    """Sets the environment of this process and of those that it starts."""
    os.environ[_VARIABLE] = "1"
    os.environ["XLA_FLAGS"] = xla_flags()


def users_environment() -> dict[str, str]:
    """The environment as it was before `compile_quickly`."""
    others = {name: value for name, value in os.environ.items() if name != _VARIABLE}
    return others | {"XLA_FLAGS": _without_flag()}


def xla_flags(*flags: str) -> str:
    """The variable XLA_FLAGS with these flags beside those of this process."""
    return " ".join(filter(None, [_without_flag(), *flags, _FLAG]))


def compile_fully(lowered: Any) -> Any:
    """The compiled program as users have it, in tests with the mark `optimised`."""
    return lowered.compile({"xla_cpu_use_fusion_emitters": True} if _HAS_FLAG else None)


def _without_flag() -> str:
    flags = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(flag for flag in flags if flag != _FLAG)

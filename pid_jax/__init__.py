"""Prompt-in-decoder: encode a document once, decode every prompt against it in parallel."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pid_jax import metrics, models, tasks
    from pid_jax.decoding.options import GenerationOptions
    from pid_jax.decoding.patterns import JsonSchema, Regex
    from pid_jax.decoding.report import DecodingReport
    from pid_jax.errors import UserError
    from pid_jax.inference.model import PidModel
    from pid_jax.inference.results import Generation, Partial, TokenLogprob

__all__ = [
    "DecodingReport",
    "Generation",
    "GenerationOptions",
    "JsonSchema",
    "Partial",
    "PidModel",
    "Regex",
    "TokenLogprob",
    "UserError",
    "metrics",
    "models",
    "tasks",
]
__version__ = "0.1.0"

_MODULES = {
    "DecodingReport": "pid_jax.decoding.report",
    "Generation": "pid_jax.inference.results",
    "GenerationOptions": "pid_jax.decoding.options",
    "JsonSchema": "pid_jax.decoding.patterns",
    "Partial": "pid_jax.inference.results",
    "PidModel": "pid_jax.inference.model",
    "Regex": "pid_jax.decoding.patterns",
    "TokenLogprob": "pid_jax.inference.results",
    "UserError": "pid_jax.errors",
}


def __getattr__(name: str) -> Any:
    # Imports on first use: JAX takes seconds, which `pid-jax --help` does not need.
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Partial loads: a model that differs from the checkpoint it starts from.

Parameters that the checkpoint lacks, or has in another shape, are initialised. Of an array with
one row for each token, the tokens of both vocabularies come from the checkpoint.
"""

import dataclasses
import functools
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Sharding

from pid_jax import models
from pid_jax.checkpoints.placement import Path
from pid_jax.models.protocol import Config, EncoderDecoder

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PartialInit:
    """What may differ from the checkpoint, and the seed of new parameters."""

    seed: int
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of `config.json` with other values than the checkpoint's, nested as there."""
    tokens: int = 0
    """Size of the tokenizer. A smaller vocabulary is extended, unless `changes` has its size."""

    def config(self, config: Config) -> Config:
        """The configuration of the new model. Raises UserError for unsupported values."""
        changes = dict(self.changes)
        if self.tokens > config.vocab_size:
            changes = {"vocab_size": self.tokens} | changes
        if not changes:
            return config
        content = config.to_hf()
        if "vocab_size" in changes:
            content = _with_vocabulary(content, changes["vocab_size"])
        return models.config_from_hf(_merged(content, changes))


def _with_vocabulary(content: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A `config.json` with another vocabulary, also of the stacks within it."""
    changed = dict(content)
    for key, value in content.items():
        if key == "vocab_size":
            changed[key] = size
        elif isinstance(value, Mapping):
            changed[key] = _with_vocabulary(value, size)
    return changed


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        own = merged.get(key)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            value = _merged(own, value)
        merged[key] = value
    return merged


def initialised(
    model: EncoderDecoder, seed: int, paths: Collection[Path], shardings: Mapping[Path, Sharding]
) -> dict[Path, jax.Array]:
    """New parameters of these paths, float32. Each device computes its share.

    They are those of a run from random parameters with the same seed.
    """
    if not paths:
        return {}

    def init(key: jax.Array) -> dict[Path, jax.Array]:
        params = flatten_dict(models.init_params(model, key))
        return {path: params[path] for path in paths}

    out = {path: shardings[path] for path in paths} if shardings else None
    return jax.jit(init, out_shardings=out)(jax.random.fold_in(jax.random.key(seed), 1))


def vocabulary_axis(
    stored: tuple[int, ...], wanted: tuple[int, ...], logical: Iterable[str | None]
) -> int | None:
    """The axis of the vocabulary if the shapes differ on this axis only, else None."""
    if len(stored) != len(wanted):
        return None
    differing = [axis for axis in range(len(wanted)) if stored[axis] != wanted[axis]]
    [axis, *others] = differing
    return axis if not others and list(logical)[axis] == "vocab" else None


@functools.partial(jax.jit, static_argnames=("tokens", "axis"))
def joined(old: jax.Array, new: jax.Array, tokens: int, axis: int) -> jax.Array:
    """`old` for the first `tokens` along an axis, `new` for the others, in the dtype of `old`."""
    number = jax.lax.broadcasted_iota(jnp.int32, old.shape, axis)
    return jnp.where(number < tokens, old, new.astype(old.dtype))


def report(
    new: Iterable[str], left_out: Iterable[str], extended: Mapping[str, tuple[int, int]]
) -> None:
    """Logs each tensor that a partial load does not take from the checkpoint as it is."""
    for name in new:
        log.warning("partial_init: %s is new and initialised", name)
    for name in left_out:
        log.warning("partial_init: %s of the checkpoint is left out", name)
    for name, (stored, wanted) in extended.items():
        log.warning(
            "partial_init: %s has %d tokens in the checkpoint and %d in the model: %d come from "
            "the checkpoint",
            name,
            stored,
            wanted,
            min(stored, wanted),
        )

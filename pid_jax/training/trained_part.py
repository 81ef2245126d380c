"""Which parameters of a model a run trains, from its configuration."""

import re
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from pid_jax import models
from pid_jax.errors import UserError
from pid_jax.models import lora
from pid_jax.models.partition import Partition
from pid_jax.models.protocol import EncoderDecoder
from pid_jax.training import config as configuration


def partition_of(config: ConfigDict, model: EncoderDecoder) -> Partition:
    """The parameters that training does not change.

    With an adapter these are all others, and also those of `config.train.freeze`. Raises UserError
    if a pattern of the configuration matches no parameter, and if none is trained.
    """
    paths = {"/".join(path): path for path in flatten_dict(models.abstract_params(model))}
    adapted = {path for path in paths.values() if lora.is_adapter(path)}
    frozen = set(paths.values()) - adapted if config.adapter.rank else set()
    pattern = config.train.freeze
    matching = {path for name, path in paths.items() if pattern and re.search(pattern, name)}
    for key, found in (("adapter.targets", adapted), ("train.freeze", matching)):
        wanted = config.adapter.rank if key == "adapter.targets" else pattern
        if wanted and not found:
            kind = "kernel" if key == "adapter.targets" else "parameter"
            examples = [name for name in paths if kind in name or kind == "parameter"]
            raise UserError(
                f"config.{key} is {configuration.get(config, key)!r}: it matches no {kind} of this "
                f"{model.config.model_type}. The paths are such as {', '.join(examples[::40][:4])}"
            )
    frozen |= matching
    if len(frozen) == len(paths):
        raise UserError(f"config.train.freeze is {pattern!r}: no parameter would be trained")
    return Partition(frozenset(frozen), jnp.dtype(config.model.frozen_dtype))


def parts_of_state(config: ConfigDict, model: EncoderDecoder) -> dict[str, Any]:
    """What a training state has beside trained parameters, as arguments of `step.initial_state`."""
    return {
        "partition": partition_of(config, model),
        "averages": config.train.ema_decay > 0,
    }

"""Architecture families, by the `model_type` of a Hugging Face `config.json`."""

import functools
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pid_jax.errors import UserError
from pid_jax.models import bart, led, longt5, pegasus, t5, t5gemma, t5gemma2
from pid_jax.models.lora import Lora
from pid_jax.models.protocol import Config, EncoderDecoder, Family, Params
from pid_jax.models.rematerialisation import NONE

_FAMILIES = (
    t5.FAMILY,
    longt5.FAMILY,
    bart.FAMILY,
    bart.MBART_FAMILY,
    pegasus.FAMILY,
    led.FAMILY,
    t5gemma.FAMILY,
    t5gemma2.FAMILY,
)


def supported() -> tuple[Family, ...]:
    """The registry: every family that can be built."""
    return _FAMILIES


def model_types() -> tuple[str, ...]:
    """Every `model_type` that can be built."""
    return tuple(name for family in _FAMILIES for name in family.model_types)


def table() -> str:
    """The registry as a Markdown table, with the parameters of each family's largest checkpoint.

    Counted by shape, without weights or memory for them.
    """
    rows = ["| family | `model_type` | checkpoints | largest tried by shape | parameters |"]
    rows.append("|---|---|---|---|---|")
    for family in _FAMILIES:
        about = family.about
        shapes = jax.tree.leaves(abstract_params(build(about.dimensions)))
        millions = sum(math.prod(leaf.shape) for leaf in shapes) / 1e6
        count = f"{millions:,.0f} million" if millions < 1e3 else f"{millions / 1e3:.1f} billion"
        types = ", ".join(f"`{name}`" for name in family.model_types)
        rows.append(f"| {about.name} | {types} | {about.checkpoints} | {about.largest} | {count} |")
    return "\n".join(rows)


def family_of(model_type: str) -> Family:
    """The family that reads this `model_type`. Raises `UserError` with all that there are."""
    for family in _FAMILIES:
        if model_type in family.model_types:
            return family
    listed = ", ".join(model_types())
    raise UserError(f'config.json: "model_type": {model_type!r} is unknown; supported: {listed}')


def why_unreadable(config: Config, tokens: Collection[int]) -> tuple[int, str] | None:
    """The first of these tokens that a model cannot read, and why."""
    unreadable = family_of(config.model_type).unreadable_tokens(config)
    lowest, highest = min(tokens, default=0), max(tokens, default=0)
    if lowest >= 0 and highest < config.vocab_size and unreadable.keys().isdisjoint(tokens):
        return None
    for token in tokens:
        if not 0 <= token < config.vocab_size:
            return token, f"but ids go from 0 to {config.vocab_size - 1}"
        if token in unreadable:
            return token, unreadable[token]
    return None


def config_from_hf(config: Mapping[str, Any]) -> Config:
    """Reads the content of a `config.json`. Raises `UserError` with what is not supported."""
    if "model_type" not in config:
        listed = ", ".join(model_types())
        raise UserError(f'config.json: "model_type" is missing; supported: {listed}')
    return family_of(config["model_type"]).config_from_hf(config)


def build(
    config: Config | Mapping[str, Any],
    dtype: DTypeLike = jnp.float32,
    *,
    remat: str = NONE,
    scan_layers: bool = False,
    lora: Lora | None = None,
) -> EncoderDecoder:
    """The model of a configuration, with activations in `dtype`, without parameters.

    remat: the policy of rematerialisation in training, see `pid_jax.models.rematerialisation`.
    scan_layers: whether programs scan over layers, see `pid_jax.models.layer_stack`. Parameters
        have the same layout.
    lora: the adapter that its parameters contain. None for a model without one.
    """
    if isinstance(config, Mapping):
        config = config_from_hf(config)
    model = family_of(config.model_type).module(config, jnp.dtype(dtype))
    return model.clone(remat=remat, scan_layers=scan_layers, lora=lora)


def _everything(module: Any) -> None:
    """Touches every parameter once, so that `init` makes it."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    mask = jnp.ones((1, 1), bool)
    keys_and_values = module.project_cross_attention(module.encode(tokens, mask))
    hidden, _ = module.decode(tokens, mask, tokens, tokens, keys_and_values, mask)
    module.logits(hidden)


def init_params(model: EncoderDecoder, key: jax.Array) -> Params:
    """New parameters, float32, as a plain tree of nested dicts."""
    variables = model.init(key, method=_everything)
    return nn.unbox(variables["params"])


@functools.lru_cache(maxsize=16)
def _abstract_variables(model: EncoderDecoder) -> Params:
    """Traced once for each model: loading one, sharding it and counting its parameters all ask."""
    variables = jax.eval_shape(lambda key: model.init(key, method=_everything), jax.random.key(0))
    boxed: Params = variables["params"]
    return boxed


def abstract_params(model: EncoderDecoder) -> Params:
    """The shapes and dtypes of `init_params`, without making anything."""
    return nn.unbox(_abstract_variables(model))


def logical_axes(model: EncoderDecoder) -> Params:
    """For every parameter a `PartitionSpec` of logical axis names, see `pid_jax.sharding`."""
    return nn.get_partition_spec(_abstract_variables(model))

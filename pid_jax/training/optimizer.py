"""The optimizer of a run: any of optax's by name, with warm-up, clipping and weight decay."""

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from pid_jax.errors import UserError
from pid_jax.models.partition import is_matrix
from pid_jax.training.leaf_groups import (
    clip_by_global_norm,
    in_groups,
    scale_by_param_block_rms,
)

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]

_OTHER_INTERFACES = frozenset(
    {"lbfgs", "contrib.dpsgd", "contrib.sophia", "contrib.momo", "contrib.momo_adam"}
)
"""They read more than a gradient and the parameters: the loss, say, or a gradient per example."""
_OTHER_PARAMETERS = "contrib.schedule_free"
"""These train other parameters than those to evaluate."""
_WITHOUT_SCHEDULE = frozenset({"rprop", "sm3", "optimistic_adam"})
"""Their learning rate is a number: the schedule scales their updates instead."""


def learning_rate(config: ConfigDict) -> Schedule:
    """The learning rate of the update that follows `step` finished ones.

    It rises linearly and reaches `optimizer.learning_rate` with update number
    `warmup_steps`; the very first update already has a rate above zero. Afterwards
    "constant", "linear" and "cosine" (down to `final_fraction` of the peak with the last
    update, number `train.steps`) or "rsqrt": peak * sqrt(warmup_steps / update).
    """
    options = config.optimizer
    peak, final = options.learning_rate, options.final_fraction
    warmup, last = options.warmup_steps, config.train.steps
    if options.schedule in ("linear", "cosine") and warmup >= last:
        raise UserError(
            f"config.optimizer.warmup_steps is {warmup}, but the whole run has config.train.steps "
            f"= {last}: make the warm-up shorter"
        )

    def decay(update: Float[Array, ""]) -> Float[Array, ""]:
        done = jnp.clip((update - warmup) / max(last - warmup, 1), 0.0, 1.0)
        match options.schedule:
            case "constant":
                return jnp.ones_like(update)
            case "linear":
                return 1.0 - (1.0 - final) * done
            case "cosine":
                return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
            case "rsqrt":
                return jnp.sqrt(max(warmup, 1) / jnp.maximum(update, max(warmup, 1)))
            case other:
                raise UserError(f"config.optimizer.schedule is {other!r}")

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        update = jnp.asarray(step).astype(jnp.float32) + 1.0
        rising = update / warmup if warmup else jnp.ones_like(update)
        return peak * jnp.where(update < warmup, rising, decay(update))

    return schedule


def names() -> list[str]:
    """The optimizers that `config.optimizer.name` takes: those of optax, and `contrib.` ones."""
    return sorted(_factories())


def check(config: ConfigDict) -> None:
    """Raises UserError for a name that optax does not have, and for an argument unknown to it."""
    name, args = config.optimizer.name, _args(config)
    factories = _factories()
    if name not in factories:
        raise UserError(f"config.optimizer.name is {name!r}: choose from {', '.join(factories)}")
    known = _parameters(factories[name])
    unknown = sorted(args.keys() - known)
    if unknown:
        raise UserError(
            f"config.optimizer.args.{unknown[0]}: optax.{name} has no such argument. It has "
            f"{', '.join(known)}"
        )


def build(config: ConfigDict) -> optax.GradientTransformation:
    """The gradient transformation: clip, precondition, decay the matrices, scale by the rate."""
    check(config)
    options = config.optimizer
    clip = clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity()
    rate = learning_rate(config)
    if _args(config) or options.name not in ("adamw", "adafactor"):
        return optax.chain(clip, _of_optax(config, rate), _decay(options.weight_decay, rate))
    # optax.adamw and optax.adafactor in parts: checkpoints of earlier versions have this state.
    if options.name == "adamw":
        precondition = optax.scale_by_adam(options.b1, options.b2, options.epsilon)
    else:
        # As in optax.adafactor, except that weight decay is multiplied by the learning rate.
        precondition = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            scale_by_param_block_rms() if options.scale_by_parameter else optax.identity(),
        )
    return optax.chain(
        clip,
        in_groups(precondition),
        optax.add_decayed_weights(options.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(rate),
    )


def matrices(params: Any) -> Any:
    """True for the leaves that weight decay applies to: kernels and learned embeddings.

    Parameters without a gradient, such as sinusoids, would shrink to zero.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: is_matrix(tuple(str(key) for key in path), jnp.ndim(leaf)), params
    )


def check_given(optimizer: Any) -> None:
    """Raises UserError for what is no optax.GradientTransformation."""
    if not (
        callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))
    ):
        raise UserError(
            f"optimizer must be an optax.GradientTransformation, not {type(optimizer).__name__}: "
            "pass optax.lion(1e-4), say"
        )


def fingerprint(
    optimizer: optax.GradientTransformation, params: Any, *, of_update: bool
) -> dict[str, str]:
    """What tells an optimizer from another one: a digest of its state's layout, and of its update.

    `params`: arrays or their shapes. Two optimizers with the same "state" can read each other's
    checkpoints. of_update: also trace the update. With the same "update" they compute the same,
    constants included. Another version of JAX or optax can change "update".
    """
    state = jax.eval_shape(optimizer.init, params)
    layout = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]
    digests = {"state": _digest("\n".join(layout))}
    if of_update:
        computation = str(jax.make_jaxpr(optimizer.update)(params, state, params))
        # The addresses of functions differ from process to process.
        digests["update"] = _digest(re.sub(r"0x[0-9a-f]+", "", computation))
    return digests


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """optax's functions from a learning rate to an optimizer, by name."""
    factories = {}
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for name, function in vars(module).items():
            whole = prefix + name
            if (
                inspect.isfunction(function)
                and not name.startswith(("_", "scale_by_"))
                and "learning_rate" in inspect.signature(function).parameters
                and whole not in _OTHER_INTERFACES
                and not whole.startswith(_OTHER_PARAMETERS)
            ):
                factories[whole] = function
    return dict(sorted(factories.items()))


def _parameters(factory: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(factory).parameters if name != "learning_rate"]


def _args(config: ConfigDict) -> dict[str, Any]:
    args = config.optimizer.get("args", {})
    return dict(args.to_dict() if isinstance(args, ConfigDict) else args)


def _of_optax(config: ConfigDict, rate: Schedule) -> optax.GradientTransformation:
    """optax's function of that name, at the rate, with the arguments of the configuration."""
    options, args = config.optimizer, _args(config)
    factory = _factories()[options.name]
    ours: Mapping[str, Any] = {"weight_decay": 0.0}  # `_decay` does it, alike for all
    if options.name == "adamw":
        ours = {**ours, "b1": options.b1, "b2": options.b2, "eps": options.epsilon}
    elif options.name == "adafactor":
        ours = {**ours, "multiply_by_parameter_scale": options.scale_by_parameter}
    ours = {name: value for name, value in ours.items() if name in _parameters(factory)}
    peak = options.learning_rate
    constant = options.name in _WITHOUT_SCHEDULE
    try:
        made = factory(learning_rate=peak if constant else rate, **{**ours, **args})
    except (TypeError, ValueError) as error:
        listed = ", ".join(f"{name}={value!r}" for name, value in args.items()) or "none"
        raise UserError(
            f"optax.{options.name} does not take config.optimizer.args ({listed}): {error}"
        ) from error
    if constant and peak:
        return optax.chain(made, optax.scale_by_schedule(lambda step: rate(step) / peak))
    return made


def _decay(weight_decay: float, rate: Schedule) -> optax.GradientTransformation:
    """Subtracts weight_decay * rate * parameter from the update of each matrix."""
    if not weight_decay:
        return optax.identity()
    decay = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=matrices), optax.scale_by_learning_rate(rate)
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        change, state = decay.update(jax.tree.map(jnp.zeros_like, updates), state, params)
        return jax.tree.map(jnp.add, updates, change), state

    return optax.GradientTransformation(decay.init, update)

"""AdamW and Adafactor with warm-up, decay and clipping, from a run's configuration."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from pid_jax.errors import UserError

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


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
        update = step.astype(jnp.float32) + 1.0
        rising = update / warmup if warmup else jnp.ones_like(update)
        return peak * jnp.where(update < warmup, rising, decay(update))

    return schedule


def build(config: ConfigDict) -> optax.GradientTransformation:
    """The gradient transformation: clip, precondition, decay the matrices, scale by the rate."""
    options = config.optimizer
    clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity()
    match options.name:
        case "adamw":
            precondition = optax.scale_by_adam(options.b1, options.b2, options.epsilon)
        case "adafactor":
            # As in optax.adafactor, except that weight decay is multiplied by the learning rate.
            precondition = optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms()
                if options.scale_by_parameter
                else optax.identity(),
            )
        case other:
            raise UserError(f"config.optimizer.name is {other!r}: choose from adamw, adafactor")
    return optax.chain(
        clip,
        precondition,
        optax.add_decayed_weights(options.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def matrices(params: Any) -> Any:
    """True for the leaves that weight decay applies to: kernels and learned embeddings.

    Norm scales have one dimension; a table of position biases is a bias all the same, and what
    training does not change has no gradient to hold its own against the decay.
    """

    def decays(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return jnp.ndim(leaf) >= 2 and not any(kept in name for kept in _NOT_DECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)


_NOT_DECAYED = ("relative_position_bias", "sinusoids", "final_logits_bias")

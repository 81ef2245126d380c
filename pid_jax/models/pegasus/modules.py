"""PEGASUS's modules are BART's, `pid_jax.models.bart.modules`: the configuration differs."""

from pid_jax.models.bart.modules import BartLike as BartLike

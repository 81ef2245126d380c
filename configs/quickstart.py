"""The five-minute run of `make quickstart`: a T5 from scratch on the synthetic dialogues."""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration


def get_config() -> ConfigDict:
    config = configuration.default()
    return config

"""The files in configs/, as they are."""

from pathlib import Path

import pytest

from pid_jax import tasks
from pid_jax.training import assembly
from pid_jax.training import config as configuration

FILES = sorted((Path(__file__).parent.parent.parent / "configs").glob("[!_]*.py"))


def test_there_are_four():
    assert [file.stem for file in FILES] == [
        "multiwoz21_scratch",
        "multiwoz21_t5_base",
        "multiwoz21_t5_large",
        "quickstart",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_names_a_task_and_fits_its_own_rules(file):
    config = configuration.load(file)
    assert isinstance(assembly.task_of(config).name, str)
    assert config.data.task in tasks.names()
    assert config.optimizer.warmup_steps < config.train.steps
    assert config.train.steps % config.evaluation.every_steps == 0

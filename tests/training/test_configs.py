"""The files in configs/, as they are."""

from pathlib import Path

import pytest

from pid_jax import tasks
from pid_jax.training import assembly
from pid_jax.training import config as configuration

FILES = sorted((Path(__file__).parent.parent.parent / "configs").glob("[!_]*.py"))


# Made from nothing, and one's own.
WITHOUT_CONFIGS = {"synthetic_dst", "jsonl"}


@pytest.mark.parametrize("benchmark", sorted(set(tasks.names()) - WITHOUT_CONFIGS))
def test_a_benchmark_has_a_size_from_scratch_and_a_pretrained_one(benchmark):
    configs = {
        file.stem: configuration.load(file)
        for file in FILES
        if file.stem.startswith(f"{benchmark}_")
    }
    assert all(config.data.task == benchmark for config in configs.values())
    assert configs[f"{benchmark}_scratch"].model.init == ""
    assert configs[f"{benchmark}_t5_base"].model.init == "google-t5/t5-base"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_names_a_task_and_fits_its_own_rules(file):
    config = configuration.load(file)
    assert isinstance(assembly.task_of(config).name, str)
    assert config.data.task in tasks.names()
    assert config.optimizer.warmup_steps < config.train.steps
    assert config.train.steps % config.evaluation.every_steps == 0

"""The files in configs/, with every argument that they take."""

from itertools import product
from pathlib import Path

import pytest

from pid_jax import tasks
from pid_jax.training import assembly, config_files
from pid_jax.training import config as configuration

FOLDER = Path(__file__).parent.parent.parent / "configs"

ARGUMENTS = {
    "multiwoz": product(("20", "21", "22", "23", "24"), ("scratch", "t5_base", "t5_large")),
    "sgd": product(("scratch", "t5_base", "t5_large")),
    "squad": product(("1", "2"), ("scratch", "t5_base")),
    "radqa": product(("scratch", "t5_base")),
    "aci_bench": product(("scratch", "t5_base", "led_base", "bart_large")),
    "quickstart": [()],
}
CONFIGS = [
    f"{name}:{','.join(argument)}" if argument else name
    for name, arguments in ARGUMENTS.items()
    for argument in arguments
]

# Some of what each former file set.
FORMER = {
    "multiwoz20_scratch": ("multiwoz20", "", 20_000),
    "multiwoz20_t5_base": ("multiwoz20", "google-t5/t5-base", 17_000),
    "multiwoz21_scratch": ("multiwoz21", "", 20_000),
    "multiwoz21_t5_base": ("multiwoz21", "google-t5/t5-base", 17_000),
    "multiwoz21_t5_large": ("multiwoz21", "google-t5/t5-large", 34_000),
    "multiwoz22_scratch": ("multiwoz22", "", 20_000),
    "multiwoz22_t5_base": ("multiwoz22", "google-t5/t5-base", 17_000),
    "multiwoz23_scratch": ("multiwoz23", "", 20_000),
    "multiwoz23_t5_base": ("multiwoz23", "google-t5/t5-base", 17_000),
    "multiwoz24_scratch": ("multiwoz24", "", 20_000),
    "multiwoz24_t5_base": ("multiwoz24", "google-t5/t5-base", 17_000),
    "sgd_scratch": ("sgd", "", 20_000),
    "sgd_t5_base": ("sgd", "google-t5/t5-base", 17_000),
    "squad1_scratch": ("squad1", "", 20_000),
    "squad1_t5_base": ("squad1", "google-t5/t5-base", 3_000),
    "squad2_scratch": ("squad2", "", 20_000),
    "squad2_t5_base": ("squad2", "google-t5/t5-base", 3_000),
    "radqa_scratch": ("radqa", "", 5_000),
    "radqa_t5_base": ("radqa", "google-t5/t5-base", 1_500),
    "aci_bench_scratch": ("aci_bench", "", 1_000),
    "aci_bench_t5_base": ("aci_bench", "google-t5/t5-base", 340),
    "aci_bench_led_base": ("aci_bench", "allenai/led-base-16384", 340),
    "aci_bench_bart_large": ("aci_bench", "facebook/bart-large", 340),
}


def test_every_file_is_listed_here():
    assert config_files.names() == sorted(ARGUMENTS)
    assert {file.stem for file in FOLDER.glob("[!_]*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_names_a_task_and_fits_its_own_rules(config):
    content = configuration.load(config)
    assert isinstance(assembly.task_of(content).name, str)
    assert content.data.task in tasks.names()
    assert content.optimizer.warmup_steps < content.train.steps
    assert content.train.steps % content.evaluation.every_steps == 0


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"quickstart"}))
def test_a_docstring_names_every_value_of_the_argument(name):
    documentation = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    for config in CONFIGS:
        stem, _, argument = config.partition(":")
        for value in argument.split(",") if stem == name else ():
            assert value in documentation, value


@pytest.mark.parametrize("name", FORMER)
def test_a_former_file_is_still_a_name(name):
    for given in (f"configs/{name}.py", FOLDER / f"{name}.py", name):
        config = configuration.load(given)
        assert (config.data.task, config.model.init, config.train.steps) == FORMER[name]


def test_no_former_name_is_missing():
    assert set(FORMER) == set(config_files.FORMER_NAMES)

"""Runs of several tasks."""

import json
from itertools import islice

import numpy as np
import pytest
from ml_collections import ConfigDict

from pid_jax.errors import UserError
from pid_jax.training import assembly, loop, mixture
from pid_jax.training import config as configuration
from tests.helpers import tiny_config

SMALL = {"train_dialogues": 30, "validation_dialogues": 8}
SHORT = {"weight": 1.0, "task": "synthetic_dst", "options": {**SMALL, "seed": 3}}
LONG = {"weight": 3.0, "task": "synthetic_dst", "options": SMALL}


def mixed(steps=10, **entries):
    config = tiny_config.get_config()
    config.train.steps = steps
    config.optimizer.schedule = "constant"
    config.data.mixture = ConfigDict(entries)
    configuration.check(config)
    return config


def lines(workdir, split):
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in read if line["split"] == split]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two tasks. Documents of "short" have 32 tokens, of "long" 64."""
    workdir = tmp_path_factory.mktemp("run")
    loop.train(mixed(short={**SHORT, "document_tokens": 32}, long=LONG), workdir)
    return workdir


def test_every_step_names_its_task(trained):
    tasks = [line["task"] for line in lines(trained, "train")]
    assert set(tasks) == {"short", "long"}
    assert abs(tasks.count("long") - 7.5) <= 1  # three quarters of ten


def test_validation_is_of_each_task_and_of_all(trained):
    for line in lines(trained, "validation"):
        for name in ("loss", "exact_match", "joint_exact_match", "token_accuracy"):
            low, high = sorted((line[f"short/{name}"], line[f"long/{name}"]))
            assert low <= line[name] <= high
    assert {"training data of short", "validation data of long"} < set(
        json.loads((trained / "data.json").read_text())
    )


def test_a_mixture_of_one_is_the_plain_run(tmp_path):
    plain = tiny_config.get_config()
    plain.train.steps = 4
    plain.data.options = ConfigDict(SMALL)
    plain.optimizer.schedule = "constant"
    loop.train(plain, tmp_path / "plain")
    loop.train(mixed(4, synthetic_dst={"weight": 5.0, "options": SMALL}), tmp_path / "mixed")
    plain_lines, mixed_lines = (
        (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("plain", "mixed")
    )
    assert plain_lines == mixed_lines


@pytest.mark.slow
def test_a_resumed_mixture_is_the_uninterrupted_one(trained, tmp_path):
    for steps in (3, 8, 10):
        loop.train(mixed(steps, short={**SHORT, "document_tokens": 32}, long=LONG), tmp_path)
    assert lines(tmp_path, "train") == lines(trained, "train")


def test_batches_have_the_documents_and_negative_targets_of_one_task(tmp_path):
    config = mixed(
        short={**SHORT, "document_tokens": 32, "negative_rate": 0.0, "max_prompts": 2}, long=LONG
    )
    materials = loop._prepare(config, tmp_path, resuming=False, other_data=False)
    _, tokenizer = assembly.saved_model(config, tmp_path / "model")
    none = tokenizer("none", add_special_tokens=False)["input_ids"]
    lengths, negatives = {"short": set(), "long": set()}, {"short": 0, "long": 0}
    for batch in islice(materials.batches, 40):
        name = {2: "short", 4: "long"}[batch.prompts.shape[1]]
        lengths[name].add(int(batch.document_mask.sum(-1).max()))
        several = batch.target_mask.any(-1).sum(-1) > 1  # one alone may be negative
        is_none = (batch.targets[..., : len(none)] == none).all(-1) & batch.target_mask.any(-1)
        negatives[name] += int(is_none[several].sum())
    assert max(lengths["short"]) == 32
    assert max(lengths["long"]) == 64
    assert negatives["short"] == 0 < negatives["long"]


def test_a_part_has_its_own_keys_and_inherits_the_others():
    config = mixed(
        a={"weight": 2, "task": "squad2", "path": "squad", "prompt_tokens": 7},
        synthetic_dst=1.5,
    )
    config.data.path = "elsewhere"
    a, b = mixture.parts(config)
    assert (a.name, a.weight, b.name, b.weight) == ("a", 2.0, "synthetic_dst", 1.5)
    assert (a.config.data.task, b.config.data.task) == ("squad2", "synthetic_dst")
    assert (a.config.data.path, b.config.data.path) == ("squad", "")
    assert a.config.data.options.to_dict() == b.config.data.options.to_dict() == {}
    assert (a.config.data.prompt_tokens, b.config.data.prompt_tokens) == (7, 16)
    assert a.config.data.document_tokens == config.data.document_tokens
    assert mixture.parts(a.config) == [mixture.Part("squad2", 1.0, a.config)]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weight": 0.0}, r"config\.data\.mixture\.a\.weight is 0\.0: it must be a number above 0"),
        ({"weight": -1.0}, "config.data.mixture.a.weight is -1.0"),
        ({"path": "x"}, "config.data.mixture.a has no weight"),
        ({"weight": 1.0, "batch_size": 3}, "unknown key config.data.mixture.a.batch_size"),
        ({"weight": "1"}, "config.data.mixture.a.weight is '1': it must be a number"),
        ({"weight": 1.0, "path": 3}, "config.data.mixture.a.path is 3: it must be text"),
        ({"weight": 1.0, "document_tokens": 0}, "config.data.mixture.a.document_tokens is 0"),
        ({"weight": 1.0, "negative_rate": 2.0}, "config.data.mixture.a.negative_rate is 2.0"),
        ({"weight": 1.0, "truncation_side": "up"}, "config.data.mixture.a.truncation_side is"),
        ("much", "config.data.mixture.a is 'much': it must be a weight, or a section"),
    ],
)
def test_errors_name_the_key(entry, message):
    with pytest.raises(UserError, match=message):
        mixed(a=entry)


def test_keys_of_a_part_can_be_set_on_the_command_line():
    config = configuration.with_overrides(
        mixed(a=LONG), ["--config.data.mixture.a.weight=2.5"], "the config"
    )
    assert config.data.mixture.a.weight == 2.5


def test_another_path_is_no_other_run():
    for key in ("data.mixture.a.path", "data.path", "data.cache", "data.tokens"):
        assert configuration.under(key, configuration.WITHOUT_EFFECT_ON_TRAINING)
    assert not configuration.under(
        "data.mixture.a.weight", configuration.WITHOUT_EFFECT_ON_TRAINING
    )


def test_turns_are_by_weight(tmp_path):
    config = mixed(a={**SHORT, "max_prompts": 1}, b={**LONG, "max_prompts": 2})
    materials = loop._prepare(config, tmp_path, resuming=False, other_data=False)
    prompts = [batch.prompts.shape[1] for batch in islice(materials.batches, 100)]
    assert np.bincount(prompts).tolist() in ([0, 25, 75], [0, 24, 76], [0, 26, 74])
    assert mixture.part(config, "a").config.data.max_prompts == 1
    with pytest.raises(
        UserError, match=r"config\.data\.mixture has several tasks: choose from a, b"
    ):
        mixture.part(config, None)
    with pytest.raises(UserError, match=r"config\.data\.mixture has no 'c': choose from a, b"):
        mixture.part(config, "c")

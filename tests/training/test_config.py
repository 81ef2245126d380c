import json

import pytest

from pid_jax.errors import UserError
from pid_jax.training import config as configuration


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from pid_jax.training import config as configuration\n"
        "def get_config(steps='1000'):\n"
        "    config = configuration.default()\n"
        "    config.train.steps = int(steps)\n"
        "    return config\n"
    )
    return path


def test_a_file_without_overrides_is_what_it_says(file):
    config = configuration.load(file)
    assert config.train.steps == 1000
    assert config.method == "pid"


def test_a_file_takes_an_argument_after_a_colon(file):
    assert configuration.load(f"{file}:7").train.steps == 7


def test_overrides_take_the_type_of_what_they_replace(file):
    config = configuration.load(
        file,
        [
            "--config.train.steps=30",
            "--config.optimizer.learning_rate=3",
            "--config.data.path=a=b.zip",
            "--config.optimizer.scale_by_parameter=false",
        ],
    )
    assert config.train.steps == 30
    assert config.optimizer.learning_rate == 3.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.data.path == "a=b.zip"
    assert config.optimizer.scale_by_parameter is False


def test_sections_of_others_take_new_keys(file):
    config = configuration.load(
        file,
        [
            "--config.data.options.seed=3",
            "--config.model.architecture.d_model=64",
            "--config.optimizer.args.eps_root=1e-9",
            "--config.optimizer.args.nesterov=true",
        ],
    )
    assert config.optimizer.args.to_dict() == {"eps_root": 1e-9, "nesterov": True}
    assert config.data.options.to_dict() == {"seed": 3}
    assert config.model.architecture.d_model == 64


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimizer.lerning_rate=1", "did you mean config.optimizer.learning_rate"),
        ("--config.optimizer.lr=1", "config.optimizer has args, b1, b2, clip_norm, "),
        ("--config.optimizer.name=adamm", "config.optimizer.name is 'adamm': choose from "),
        ("--config.optimizer.args.beta=1", "config.optimizer.args.beta: optax.adamw has no such"),
        ("--config.nothing.lr=1", "unknown key config.nothing.lr"),
        ("--config.steps=5", "did you mean config.train.steps"),
        ("--config.train.steps=many", "config.train.steps"),
        ("--config.train.steps=1.5", "config.train.steps"),
        ("--config.train.steps", "write --config.train.steps=value"),
        ("--config.train=3", "is a section"),
        ("--steps=3", "unexpected argument '--steps=3'"),
        ("--config.train.steps=0", "config.train.steps is 0: it must be at least 1"),
        ("--config.method=pdi", "choose from pid, pie"),
        ("--config.data.negative_rate=1.5", "from 0 to 1"),
        ("--config.train.dropout_rate=1.0", "from 0 to below 1"),
        ("--config.checkpoint.best_metric=jga", "choose from loss, token_accuracy"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(file, override, message):
    with pytest.raises(UserError) as error:
        configuration.load(file, [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = (", "SyntaxError"),
        ("x = 1", "get_config"),
        ("def get_config(): return {}", "ConfigDict"),
        ("import nowhere_to_be_found", "nowhere_to_be_found"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config(): return ConfigDict({'train': {'stepz': 1}})",
            "unknown key train.stepz",
        ),
        (
            "from pid_jax.training import config as c\n"
            "def get_config():\n    d = c.default()\n    d.train.stepz = 1\n    return d",
            "stepz",
        ),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, content, message):
    path = tmp_path / "bad.py"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        configuration.load(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"nowhere\.py does not exist"):
        configuration.load("nowhere.py")


def test_an_argument_for_a_file_that_takes_none_is_refused():
    with pytest.raises(UserError, match=r"quickstart\.py: it takes no argument, but '7' follows"):
        configuration.load("quickstart:7")


def test_a_config_of_this_project_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("multiwoz:24,t5_base", "configs/multiwoz.py:t5_base,24", "multiwoz24_t5_base"):
        config = configuration.load(name, ["--config.train.steps=3"])
        assert (config.data.task, config.train.steps) == ("multiwoz24", 3)
        assert config.model.init == "google-t5/t5-base"
    with pytest.raises(UserError, match=r"nowhere does not exist.*aci_bench, multiwoz, quickstart"):
        configuration.load("nowhere")
    (tmp_path / "quickstart.py").write_text("def get_config(): return {}")
    with pytest.raises(UserError, match="must return an ml_collections ConfigDict"):
        configuration.load("quickstart.py")


def test_an_unknown_argument_is_refused_with_what_there_is():
    with pytest.raises(UserError) as error:
        configuration.load("multiwoz:25,t5_base")
    assert "'25' is unknown" in str(error.value)
    assert "RELEASE: 21, 20, 22, 23, 24; SIZE: scratch, t5_base, t5_large" in str(error.value)
    with pytest.raises(UserError, match="two values of RELEASE"):
        configuration.load("multiwoz:21,24")


def test_differences_name_dotted_keys_on_both_sides():
    old = {"a": {"b": 1, "c": 2}, "d": {}}
    new = {"a": {"b": 1, "c": 3}, "d": {"e": 4}}
    assert configuration.differences(old, new) == {
        "a.c": (2, 3),
        "d": ({}, None),
        "d.e": (None, 4),
    }


def test_a_config_does_not_differ_from_its_json():
    config = configuration.default()
    assert configuration.differences(config, json.loads(configuration.to_json(config))) == {}


def test_a_key_lies_under_its_section_and_no_other():
    assert configuration.under("data.path", ["data"])
    assert configuration.under("data", ["data"])
    assert not configuration.under("database.path", ["data"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", "is not a JSON object"),
        ("\\xff", "Expecting value"),
    ],
)
def test_a_saved_configuration_that_is_no_json_object_is_named(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        configuration.read_saved(file)
    assert str(error.value).startswith(str(file))
    assert "name a config file with --config" in str(error.value)


def test_a_saved_configuration_of_an_earlier_version_has_the_later_keys(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"train": {"steps": 3}}')
    saved = configuration.read_saved(file)
    assert saved["train"] == {
        "steps": 3,
        "remat": "none",
        "micro_batches": 1,
        "freeze": "",
        "ema_decay": 0.0,
        "max_nonfinite_steps": 0,
        "loggers": ["tensorboard"],
        "profile_steps": "",
    }
    assert saved["evaluation"] == {"task_score_every_steps": 0}
    assert saved["checkpoint"] == {"patience": 0}
    assert saved["model"] == {
        "scan_layers": False,
        "partial_init": False,
        "init_architecture": {},
        "frozen_dtype": "float32",
    }
    assert saved["adapter"]["rank"] == 0
    assert saved["data"] == {"mixture": {}, "tokens": "memory", "cache": "", "packing": False}

"""Runs with an adapter: what they save, how they resume, what they export, damage to them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from pid_jax import sharding
from pid_jax.checkpoints import frozen, identity, peft, trained_model
from pid_jax.checkpoints.contents import saved_steps
from pid_jax.errors import UserError
from pid_jax.export import export
from pid_jax.export import main as export_command
from pid_jax.inference.model import PidModel
from pid_jax.models import lora
from pid_jax.models.lora import is_adapter
from pid_jax.models.partition import joined
from pid_jax.tasks import Report
from pid_jax.training import loop, run_checks, task_score
from tests.helpers import tiny_checkpoint, tiny_config

STEPS = 8
DOCUMENT, PROMPT, TARGET = "[user] a cheap hotel in the north", "hotel-area", "north"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint whose feed-forward is much larger than an adapter of its attention."""
    directory = tmp_path_factory.mktemp("base")
    architecture, tiny_checkpoint.ARCHITECTURE = (
        tiny_checkpoint.ARCHITECTURE,
        tiny_checkpoint.ARCHITECTURE | {"d_ff": 8192},
    )
    try:
        return tiny_checkpoint.write(directory)
    finally:
        tiny_checkpoint.ARCHITECTURE = architecture


def config(base, steps=STEPS, **changes):
    config = tiny_config.get_config()
    config.model.init = str(base)
    config.adapter.rank = 4
    config.adapter.dropout = 0.1
    config.train.ema_decay = 0.5
    config.train.steps = steps
    config.train.log_every_steps = 100
    config.optimizer.learning_rate = 0.05
    config.optimizer.schedule = "constant"
    config.checkpoint.every_steps = 4
    config.evaluation.every_steps = 4
    config.evaluation.documents = 4
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The workdir of a run with checkpoints at steps 4 and 8."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    loop.train(config(base), workdir)
    assert saved_steps(workdir)[-1] == STEPS
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


def state(workdir, step=STEPS):
    return ocp.load(workdir / "checkpoints" / str(step))


def bytes_of(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_the_loss_falls_and_the_base_stays_as_it_is(run, base):
    curve = losses(run)
    assert np.mean(curve[-3:]) < 0.97 * np.mean(curve[:3])
    before = flatten_dict(PidModel.from_pretrained(base).params)
    saved = flatten_dict(ocp.load(run / "checkpoints/frozen"))
    assert saved.keys() == before.keys()
    for path, leaf in saved.items():
        np.testing.assert_array_equal(leaf, before[path])


def test_checkpoints_have_the_adapter_alone_and_are_small(run, base):
    content = state(run)
    assert content.keys() == {"step", "params", "opt_state", "key", "ema"}
    assert all(map(is_adapter, flatten_dict(content["params"])))
    entries = sum(leaf.size for leaf in jax.tree.leaves(content["params"]))
    of_state = sum(leaf.size for leaf in jax.tree.leaves(content))
    assert of_state == 4 * entries + 5  # two moments, the average, the counters and the key
    one = bytes_of(run / "checkpoints" / str(STEPS))
    whole = bytes_of(run / "checkpoints/frozen")
    print(f"a checkpoint has {one:,} bytes, the frozen parameters {whole:,}")
    assert one < 0.1 * whole


def test_the_model_of_the_run_has_the_merged_average(run, base):
    average = {path: np.asarray(leaf) for path, leaf in flatten_dict(state(run)["ema"]).items()}
    last = flatten_dict(state(run)["params"])
    expected = flatten_dict(PidModel.from_pretrained(base).params)
    path = ("decoder", "layers_1", "cross_attention", "value")
    a, b = average[(*path, lora.A)], average[(*path, lora.B)]
    assert not np.array_equal(b, last[(*path, lora.B)])
    kernel = expected[(*path, "kernel")] + 16.0 / 4 * a @ b
    loaded = flatten_dict(PidModel.from_pretrained(run / "checkpoints" / str(STEPS)).params)
    assert loaded.keys() == expected.keys()
    np.testing.assert_allclose(loaded[(*path, "kernel")], kernel, atol=1e-6)
    for other in expected:
        if other[-2] not in ("query", "value"):
            np.testing.assert_array_equal(loaded[other], expected[other])


def test_all_parameters_of_a_model_with_biases_are_loaded_in_one_dtype(tmp_path):
    options = tiny_config.get_config()
    options.model.architecture = ConfigDict(
        {
            "model_type": "bart",
            "d_model": 16,
            **{f"{stack}_layers": 1 for stack in ("encoder", "decoder")},
            **{f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")},
            **{f"{stack}_ffn_dim": 16 for stack in ("encoder", "decoder")},
            "max_position_embeddings": 256,
        }
    )
    options.adapter.rank = 2
    options.train.steps = 4
    options.optimizer.warmup_steps = 1
    options.evaluation.documents = 4
    loop.train(options, tmp_path)
    params = flatten_dict(trained_model.load_params(tmp_path, "last", "bfloat16"))
    assert any(path[-1] == "bias" and "query" in path for path in params)
    assert {str(leaf.dtype) for leaf in params.values()} == {"bfloat16"}


def test_the_task_is_scored_with_the_merged_average(run, base, monkeypatch):
    models = []

    def evaluate(model, *_, **__):
        models.append(model)
        return SimpleNamespace(report=Report({"slot_accuracy": 0.5}))

    monkeypatch.setattr(task_score.evaluation, "evaluate", evaluate)
    expected = PidModel.from_pretrained(run / "checkpoints" / str(STEPS))
    score = task_score.TaskScore(config(base), expected.config, run, sharding.make_mesh())
    whole = joined(state(run)["ema"], ocp.load(run / "checkpoints/frozen"))
    assert score(whole, None).metrics == {"slot_accuracy": 0.5}
    [scored] = models
    ours, theirs = flatten_dict(scored.params), flatten_dict(expected.params)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], atol=1e-6)


def test_a_merged_export_scores_as_the_run(run, tmp_path):
    export_command([f"--checkpoint={run}", f"--output={tmp_path}"])
    question = [DOCUMENT], [[PROMPT]], [[TARGET]]
    exported = PidModel.from_pretrained(tmp_path).score(*question)
    assert exported == PidModel.from_pretrained(run).score(*question)


def test_an_export_of_the_adapter_is_the_same_model_in_peft(run, base, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    their_peft = pytest.importorskip("peft")
    export_command([f"--checkpoint={run}", f"--output={tmp_path / 'adapter'}", "--adapter"])
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {peft.CONFIG, peft.WEIGHTS}

    ours = PidModel.from_pretrained(tmp_path / "adapter")
    expected = PidModel.from_pretrained(run)
    close = lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6)  # noqa: E731
    jax.tree.map(close, ours.params, expected.params)
    assert ours.tokenizer is not None

    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    theirs = their_peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    expected.save_pretrained(tmp_path / "merged")
    merged = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 1]]),
        "decoder_input_ids": torch.tensor([[0, 9, 10, 11]]),
    }
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(**inputs).logits, merged(**inputs).logits, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("method", ["pid", "pie"])
def test_a_run_resumes_bit_for_bit(method, base, tmp_path):
    options = {"evaluation__documents": 2, "model__frozen_dtype": "bfloat16"}
    workdirs = tmp_path / "whole", tmp_path / "in parts"
    for workdir, ends in zip(workdirs, ([6], [3, 6]), strict=True):
        for steps in ends:
            of_run = config(base, steps, **options)
            of_run.method = method
            loop.train(of_run, workdir)
    assert losses(workdirs[0]) == losses(workdirs[1])
    assert len(losses(workdirs[0])) == 6
    jax.tree.map(np.testing.assert_array_equal, *(state(workdir, 6)["ema"] for workdir in workdirs))
    jax.tree.map(np.testing.assert_array_equal, *(state(workdir, 6) for workdir in workdirs))


def test_a_run_does_not_resume_with_another_adapter(copy, base):
    for key, value in {
        "adapter__rank": 2,
        "train__ema_decay": 0.0,
        "train__freeze": "^encoder",
        "model__frozen_dtype": "bfloat16",
    }.items():
        with pytest.raises(UserError, match=rf"config\.{key.replace('__', '[.]')} was"):
            loop.train(config(base, 2 * STEPS, **{key: value}), copy)


def test_random_parameters_with_frozen_ones_resume_and_have_no_base_to_name(tmp_path):
    of_run = tiny_config.get_config()
    of_run.train.steps = 2
    of_run.optimizer.warmup_steps = 1
    of_run.adapter.rank = 2
    workdir = tmp_path / "run"
    loop.train(of_run, workdir)
    of_run.train.steps = 3
    loop.train(of_run, workdir)
    assert len(losses(workdir)) == 3
    with pytest.raises(UserError, match="started from random parameters"):
        export(workdir, tmp_path / "adapter", adapter_only=True)
    assert not (tmp_path / "adapter").exists()


def largest(directory):
    return max(directory.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE = {
    "a byte of a frozen parameter": lambda workdir: flip(largest(workdir / "checkpoints/frozen")),
    "a truncated file": lambda workdir: largest(workdir / "checkpoints/frozen").write_bytes(b"x"),
    "a missing file": lambda workdir: largest(workdir / "checkpoints/frozen").unlink(),
    "no manifest": lambda workdir: (workdir / "checkpoints/frozen/manifest.json").unlink(),
    "nothing": lambda workdir: shutil.rmtree(workdir / "checkpoints/frozen"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_frozen_parameters_is_named_and_never_used(damage, copy, base):
    DAMAGE[damage](copy)
    where = str(copy / "checkpoints/frozen")
    for use in (
        lambda: PidModel.from_pretrained(copy),
        lambda: loop.train(config(base, 2 * STEPS), copy),
        lambda: trained_model.load_adapter(copy),
    ):
        with pytest.raises(UserError) as error:
            use()
        assert where in str(error.value)
        assert "is damaged" in str(error.value)


def test_damage_to_an_adapter_is_named_and_the_run_goes_on_before_it(copy, base):
    flip(largest(copy / "checkpoints" / str(STEPS)))
    with pytest.raises(UserError, match=f"checkpoints/{STEPS} is damaged"):
        PidModel.from_pretrained(copy / "checkpoints" / str(STEPS))
    before = saved_steps(copy)[-2]
    assert run_checks.last_step(copy) == before


def test_frozen_parameters_of_another_run_are_not_those_of_a_checkpoint(copy, run, base):
    other = jax.tree.map(lambda leaf: leaf + 1, ocp.load(run / "checkpoints/frozen"))
    frozen.save(copy, other)
    with pytest.raises(UserError, match="not the frozen parameters that the checkpoint"):
        PidModel.from_pretrained(copy)


def test_the_identity_of_a_run_covers_its_frozen_parameters(copy, run):
    assert identity.digest(copy) == identity.digest(run)
    flip(largest(copy / "checkpoints/frozen"))
    assert identity.digest(copy) != identity.digest(run)


def test_a_run_killed_before_its_first_checkpoint_starts_again(run, base, tmp_path):
    """What a kill leaves: frozen parameters, complete or not, and no checkpoint."""
    shutil.copytree(run / "checkpoints/frozen", tmp_path / "checkpoints/frozen")
    flip(largest(tmp_path / "checkpoints/frozen"))
    (tmp_path / "checkpoints/.saving-frozen").mkdir()
    loop.train(config(base, 1), tmp_path)
    assert not (tmp_path / "checkpoints/.saving-frozen").exists()
    PidModel.from_pretrained(tmp_path)


def test_what_has_no_adapter_of_its_own_to_export_says_why(run, base, tmp_path):
    with pytest.raises(UserError, match="is not a training run, so it has no adapter"):
        export(base, tmp_path, adapter_only=True)

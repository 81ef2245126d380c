"""Requests from flags, configs and checkpoints, and the errors of those that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from pid_jax import models
from pid_jax.compile_ahead import architectures, targets
from pid_jax.compile_ahead.programs import ProgramRequest
from pid_jax.compile_ahead.requests import ModelSource, request_of
from pid_jax.compile_ahead.targets import Target, parse
from pid_jax.data.batching import BatchShape
from pid_jax.data.packing import PackedShape
from pid_jax.errors import UserError
from tests.helpers.tiny_t5 import TINY


def request(program: str = "decode", **options: Any) -> ProgramRequest:
    source = {k: options.pop(k) for k in list(options) if k in ModelSource.__annotations__}
    if not source:
        source = {"architecture": "t5-base"}
    options.setdefault("sizes", {})
    options.setdefault("mesh", {})
    return request_of(parse("v5e"), program, ModelSource(**source), **options)


@pytest.mark.parametrize(
    ("text", "target", "count"),
    [
        ("v5e", Target("v5e"), 1),
        ("v5e:2x4", Target("v5e", (2, 4)), 8),
        ("v5p:4x4x4", Target("v5p", (4, 4, 4)), 64),
        ("h100:8", Target("h100", (8,)), 8),
        ("v5e:1x1", Target("v5e"), 1),
    ],
)
def test_a_target_is_a_chip_and_a_topology(text: str, target: Target, count: int) -> None:
    assert parse(text) == target
    assert parse(text).count == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a100", "choose from v4, v5e, v5p, v6e, h100"),
        ("v5e:8", "v5e has 2 sizes, as in v5e:2x2"),
        ("v5p:2x2", "v5p has 3 sizes"),
        ("h100:2x4", "h100 has 1 size, as in h100:8"),
        ("v5e:", "has 2 sizes"),
        ("v5e:0x4", "has 2 sizes"),
    ],
)
def test_another_target_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(text)


def test_weights_in_8_bits_are_for_inference() -> None:
    assert request(weights="int8").weights == "int8"
    with pytest.raises(UserError, match="--weights=int8 is for inference: choose --program=pre"):
        request("train", weights="int8")


@pytest.mark.parametrize("kind", ["v5e", "h100"])
def test_a_missing_compiler_is_named_with_its_installation(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    package = "libtpu" if kind == "v5e" else r'"jax\[cuda12\]==[\d.]+"'
    with pytest.raises(UserError, match=f"pip install {package}`, or `make targets`"):
        targets.devices(parse(kind))


def test_the_environment_has_what_the_compilers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    for name in ("JAX_PLATFORMS", *targets._ENVIRONMENT):
        monkeypatch.setenv(name, "before")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    targets.prepare_environment()
    targets.prepare_environment()
    environment = targets.os.environ
    assert environment["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_enable_triton_gemm=false"
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert environment["TPU_SKIP_MDS_QUERY"] == "1"


# Parameters of the published checkpoints in millions, from their papers and pages: Raffel et al.,
# arXiv 1910.10683, section 3.7 (60, 220, 770 million, 2.8 and 11 billion); Flan-T5's pages;
# T5Gemma, arXiv 2504.06225 (2.6 + 2.6 billion, each with 590 million of embeddings).
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("t5-small", 60.5),
        ("t5-base", 222.9),
        ("t5-large", 737.7),
        ("t5-3b", 2_851.6),
        ("t5-11b", 11_307.3),
        ("flan-t5-base", 247.6),
        ("flan-t5-xl", 2_849.8),
        ("bart-large", 406.3),
        ("t5gemma-2b-2b", 5_600),
    ],
)
def test_sizes_of_an_architecture_are_those_of_the_checkpoint(name: str, millions: float) -> None:
    import jax

    model = models.build(architectures.get(name))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(models.abstract_params(model)))
    assert parameters / 1e6 == pytest.approx(millions, rel=5e-3)


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_every_architecture_can_be_read(name: str) -> None:
    assert models.config_from_hf(architectures.get(name)).vocab_size > 30_000


def test_an_architecture_has_its_hub_id_too() -> None:
    assert architectures.find("google-t5/t5-base") == architectures.get("t5-base")
    assert architectures.find("google/t5gemma-2b-2b-ul2-it") == architectures.get("t5gemma-2b-2b")
    with pytest.raises(UserError, match="--architecture=t6 is unknown; choose from t5-small"):
        architectures.get("t6")


def test_sizes_come_from_the_config_and_flags_replace_them() -> None:
    configured = request("train", config="multiwoz:21,t5_base")
    # 17 prompt tokens with the start token become a bucket of 18.
    assert configured.shape == BatchShape(32, 512, 12, 18, 24)
    assert configured.config.num_layers == 12
    changed = request(
        "train",
        config="multiwoz:21,t5_base",
        overrides=["--config.data.batch_size=16", "--config.model.dtype=float32"],
        sizes={"prompt_tokens": 17, "prompts": None},
    )
    assert changed.shape == BatchShape(16, 512, 12, 17, 24)
    assert changed.dtype == "float32"


def test_a_config_that_packs_has_rows_for_all_prompts_at_full_length() -> None:
    packed = request("train", config="multiwoz:21,t5_base")
    # 12 prompts of 17 tokens after the start token, with targets of 24: segments of 41 tokens, 492
    # in all, 512 as a bucket.
    assert packed.arranged == PackedShape(32, 512, 1, 512, 288)
    named = request("evaluate", config="multiwoz:21,t5_base", sizes={"rows": 2, "row_tokens": 40})
    assert named.arranged == PackedShape(32, 512, 2, 40, 80)
    unpacked = ["--config.data.packing=False"]
    one_each = request("train", config="multiwoz:21,t5_base", overrides=unpacked)
    assert one_each.arranged == one_each.shape
    assert request("train").arranged == request("train").shape  # sizes of flags alone


def test_sizes_of_rows_need_a_config_that_packs() -> None:
    with pytest.raises(UserError, match="--rows and --row-tokens: name both or neither"):
        request("train", config="multiwoz:21,t5_base", sizes={"rows": 2})
    for options in ({"config": "multiwoz:21,t5_base", "method": "pie"}, {}):
        with pytest.raises(UserError, match="for a training config that packs prompts"):
            request("train", sizes={"rows": 2, "row_tokens": 40}, **options)


def test_under_pie_every_pair_is_a_document() -> None:
    pairs = request(method="pie", sizes={"documents": 8, "prompts": 30})
    assert pairs.arranged == BatchShape(8 * 30, 512 + 9 - 1, 1, 1, 16)
    assert request().arranged == BatchShape(8, 512, 30, 9, 16)


def test_a_checkpoint_is_a_file_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    for path in (tmp_path, tmp_path / "config.json"):
        assert request(checkpoint=str(path)).config.d_model == TINY["d_model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ()}, "no model: name one with --architecture=t5-base"),
        ({"architecture": "t5-base", "checkpoint": "x"}, "leave one out"),
        ({"checkpoint": "nowhere"}, "--checkpoint=nowhere: no config.json there"),
        ({"sizes": {"documents": 0}}, "--documents=0: it must be at least 1"),
        (
            {"config": "multiwoz", "overrides": ["--config.model.init=someone/else"]},
            "config.model.init is 'someone/else', whose sizes are not known",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        request(**options)


@pytest.mark.parametrize(
    ("program", "flags", "mesh"),
    [
        ("train", {}, {"data": -1, "fsdp": 1, "tensor": 1}),
        ("train", {"fsdp": -1}, {"data": 1, "fsdp": -1, "tensor": 1}),
        ("train", {"fsdp": 16, "tensor": 4}, {"data": -1, "fsdp": 16, "tensor": 4}),
        ("decode", {}, {"data": 1, "fsdp": 1, "tensor": -1}),
        (
            "decode",
            {"data": 2, "fsdp": 2, "tensor": 2},
            {"data": 2, "fsdp": 2, "tensor": 2},
        ),
    ],
)
def test_devices_that_no_flag_names_go_to_one_axis(
    program: str, flags: dict[str, int], mesh: dict[str, int]
) -> None:
    assert request(program, mesh=flags).mesh == mesh

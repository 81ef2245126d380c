"""`compile-ahead` with the real compilers for H100 and TPU."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pid_jax import device_memory, models
from pid_jax.commands import compile_ahead
from pid_jax.compile_ahead import estimate, report, targets
from pid_jax.data.batching import BatchShape
from pid_jax.errors import UserError
from tests.helpers.targets import (
    SMALL,
    compiled_request,
    function_estimate,
    program_estimate,
    skip_without_compiler,
)

pytestmark = [pytest.mark.targets, pytest.mark.slow]

SHAPE = BatchShape(8, 128, 4, 8, 16)
TPUS = ("v4", "v5e", "v5p", "v6e")


def parameters(itemsize: int) -> int:
    leaves = jax.tree.leaves(models.abstract_params(models.build(SMALL)))
    return sum(leaf.size for leaf in leaves) * itemsize


@pytest.mark.parametrize("kind", TPUS)
def test_a_large_product_takes_about_the_time_of_the_chips_rate(kind: str) -> None:
    matrix = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16)
    product = function_estimate(kind, jnp.matmul, matrix, matrix)
    chip = targets.parse(kind).chip
    assert product.flops == 2 * 8192**3
    assert chip.clock_hertz is not None
    seconds = product.work.cycles / chip.clock_hertz
    assert 0.95 < seconds / (2 * 8192**3 / chip.flops_per_second) < 1.6


@pytest.mark.parametrize("kind", TPUS)
def test_programs_with_gathers_have_cycles(kind: str) -> None:
    large = {**SMALL, "vocab_size": 32_128}
    estimate = program_estimate(kind, "prefill", large, BatchShape(8, 512, 8, 9, 16))
    assert estimate.unreadable == ""
    assert estimate.parts["encoder attention"].cycles


def test_a_product_is_one_library_call_on_h100() -> None:
    matrix = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
    product = function_estimate("h100", jnp.matmul, matrix, matrix)
    assert product.kinds == {"__cublas$lt$matmul": 1}
    assert product.work.bytes == 3 * 1024 * 1024 * 2
    assert product.work.cycles == 0


@pytest.mark.parametrize("kind", ["v5e", "h100"])
def test_a_scan_counts_every_iteration(kind: str) -> None:
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    weights = jax.ShapeDtypeStruct((6, 256, 256), jnp.bfloat16)

    def scanned(x: Any, weights: Any) -> Any:
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    six = function_estimate(kind, scanned, x, weights)
    assert six.flops == 6 * 2 * 256**3
    # A product in each iteration, beside slices, a counter and copies.
    assert 6 <= six.work.kernels <= 6 * 5
    if kind == "h100":
        assert six.kinds["__cublas$lt$matmul"] == 6


@pytest.mark.parametrize("target", ["v5e", "h100"])
@pytest.mark.parametrize("program", ["prefill", "decode", "score", "train", "evaluate"])
def test_every_program_compiles(target: str, program: str) -> None:
    compiled = compiled_request(target, program, SMALL, SHAPE)
    figures = report.to_json(compiled)
    assert figures["fits"]
    assert figures["kernels"] > 0
    assert (figures["estimated_cycles"] is None) == (target == "h100")
    if program in ("train", "evaluate"):
        assert figures["parameter_bytes"] == parameters(4)
    else:
        # The scales of two norms in each decoder layer are part of joined kernels.
        scales = 2 * SMALL["num_decoder_layers"] * SMALL["d_model"]
        assert figures["parameter_bytes"] == parameters(2) - 2 * scales
    assert figures["argument_bytes"] >= figures["parameter_bytes"] / 2  # some programs read part
    assert figures["flops"] > 0
    expected = {"cross-attention", "feed-forward", "self-attention"}
    assert expected <= figures["parts"].keys()
    if program == "train":
        assert "optimizer" in figures["parts"]
        assert figures["optimizer_bytes"] >= 2 * parameters(4)  # AdamW's two moments
    assert "fits" in report.table(compiled).splitlines()


def test_a_decode_step_does_not_depend_on_the_number_of_steps() -> None:
    few = program_estimate("h100", "decode", SMALL, SHAPE)
    more = program_estimate("h100", "decode", SMALL, BatchShape(8, 128, 4, 8, 32))
    assert few.outside is not None
    assert abs(few.work.kernels - more.work.kernels) <= 4


def test_flops_of_a_decode_step_are_those_of_the_formula() -> None:
    """One token of every prompt, through both layers and the head."""
    prompts, d, f, s = 4, 256, 512, 128
    rows = 8 * prompts
    slots = 24  # 8 + 16 - 1, up to a multiple of 8
    step = program_estimate("v5e", "decode", SMALL, SHAPE)
    products = rows * (6 * d * d + 2 * d * f)
    # One product has the keys of all prompts of a document.
    attention = 2 * rows * d * (s + slots * prompts)
    assert step.flops == 2 * (2 * (products + attention) + rows * d * 1024)


@pytest.mark.parametrize(
    ("target", "mesh"),
    [
        ("v5e:2x4", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("h100:4", {"data": 1, "fsdp": 4, "tensor": 1}),
    ],
)
def test_a_mesh_splits_parameters_and_has_collectives(target: str, mesh: dict[str, int]) -> None:
    compiled = compiled_request(target, "train", SMALL, SHAPE, mesh=mesh)
    figures = report.to_json(compiled)
    assert figures["devices"] == 8 if target == "v5e:2x4" else 4
    assert figures["collectives"]
    assert sum(one["bytes"] for one in figures["collectives"].values()) > 0
    # Norms and biases are whole on every device.
    assert figures["parameter_bytes"] < 0.3 * parameters(4)


def test_a_large_mesh_has_memory_even_if_its_program_cannot_be_printed() -> None:
    mesh = {"data": 1, "fsdp": 16, "tensor": 4}
    shape = BatchShape(64, 128, 4, 8, 16)
    compiled = compiled_request("v5p:4x4x4", "train", SMALL, shape, mesh=mesh)
    figures = report.to_json(compiled)
    assert figures["devices"] == 64
    assert figures["fits"]
    assert 0 < figures["temporary_bytes"] < figures["memory_bytes"]
    if "unreadable" in figures:
        assert figures["kernels"] is None
        assert figures["unreadable"] in report.table(compiled)
    else:
        assert figures["collectives"]


def test_inference_on_a_mesh_splits_products() -> None:
    mesh = {"data": 1, "fsdp": 1, "tensor": 4}
    step = program_estimate("v5e:2x2", "decode", SMALL, SHAPE, mesh=mesh)
    assert "all-reduce" in step.collectives


def test_sizes_that_a_mesh_does_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="must be a multiple of 8"):
        compiled_request("v5e:2x4", "train", SMALL, BatchShape(6, 128, 4, 8, 16), mesh={"data": 8})
    mesh = {"data": 1, "tensor": 8}
    with pytest.raises(UserError, match="data=1, tensor=8 does not divide an axis of the model"):
        compiled_request("v5e:2x4", "decode", SMALL, SHAPE, mesh=mesh)


def test_a_topology_that_does_not_exist_is_refused() -> None:
    skip_without_compiler("v5e")
    with pytest.raises(UserError, match="--target=v5e:3x3: the compiler rejects it"):
        targets.devices(targets.parse("v5e:3x3"))


def test_a_program_that_does_not_fit_has_remedies() -> None:
    large = SMALL | {"d_model": 4096, "d_ff": 16384, "num_heads": 64, "num_layers": 8}
    large["num_decoder_layers"] = 8
    compiled = compiled_request("v5e", "train", large, BatchShape(8, 128, 4, 8, 16))
    assert not report.fits(compiled)
    assert compiled.needed_bytes > 16 << 30
    text = report.table(compiled)
    assert "does not fit:" in text
    assert "--config.optimizer.name=adafactor" in text
    assert "--target=v5e:2x4 --fsdp=-1" in text


def test_the_command_prints_and_writes_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_compiler("h100")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    compile_ahead.main(
        [
            "--target=h100",
            "--program=decode",
            f"--checkpoint={tmp_path}",
            "--documents=2",
            "--document-tokens=128",
            "--prompts=4",
            "--prompt-tokens=8",
            "--max-new-tokens=16",
            f"--json={tmp_path / 'figures.json'}",
            f"--dump={tmp_path / 'dump'}",
        ]
    )
    printed = capsys.readouterr().out
    assert "one decode step, by part" in printed
    assert report.CAVEAT in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    for key in ("estimated_cycles", "kernels", "temporary_bytes", "argument_bytes", "flops"):
        assert key in figures
    text = (tmp_path / "dump" / "h100-decode.txt").read_text()
    read = estimate.of_text(
        text, name="decode", memory=device_memory.Memory(0, 0, 0, 0), flops=0, decodes=True
    )
    assert read.work.kernels == figures["kernels"]

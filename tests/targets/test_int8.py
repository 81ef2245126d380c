"""Weights in 8 bits in decode steps compiled for a TPU and a GPU."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from pid_jax import models
from pid_jax.compile_ahead import targets
from pid_jax.compile_ahead.compilation import Compiled, compile_request
from pid_jax.compile_ahead.programs import ProgramRequest
from pid_jax.data.batching import BatchShape
from tests.helpers.targets import DIALOGUES, SMALL, skip_without_compiler

pytestmark = [pytest.mark.targets, pytest.mark.slow]


T5_BASE = SMALL | {
    "vocab_size": 32128,
    "d_model": 768,
    "d_ff": 3072,
    "num_heads": 12,
    "num_layers": 12,
    "num_decoder_layers": 12,
}
"""With fewer layers the weights stay in a TPU's vector memory, whatever their dtype."""

SLACK = 1.03
"""The most that a figure of the compilers may exceed the one that was read here."""

ONE_LONG = BatchShape(1, 1536, 4, 9, 128)
"""A document with few prompts. A decode step reads more bytes of weights than of anything else."""


def decode_step(
    weights: str | None,
    dump: Path | None = None,
    *,
    target: str = "v5e",
    config: Mapping[str, Any] = SMALL,
    shape: BatchShape = DIALOGUES,
) -> Compiled:
    skip_without_compiler(target)
    request = ProgramRequest(
        target=targets.parse(target),
        program="decode",
        config=models.config_from_hf(config),
        shape=shape,
        weights=weights,
    )
    return compile_request(request, dump)


def kernel_shapes() -> set[tuple[int, ...]]:
    """The shapes of the decoder's kernels and of the embeddings."""
    params = models.abstract_params(models.build(SMALL))
    leaves = jax.tree_util.tree_leaves_with_path({"d": params["decoder"], "e": params["shared"]})
    return {leaf.shape for path, leaf in leaves if path[-1].key in ("kernel", "embedding")} - {
        leaf.shape for path, leaf in leaves if "bias" in str(path)
    }


def weights_of_a_step(config: Mapping[str, Any]) -> int:
    """The number of weights in 8 bits that a decode step reads.

    A decode step has no parameter of the encoder, and no key or value of cross-attention.
    """
    leaves = jax.tree_util.tree_leaves_with_path(models.abstract_params(models.build(config)))
    return sum(
        leaf.size
        for path, leaf in leaves
        if path[-1].key in ("kernel", "embedding")
        and path[0].key in ("decoder", "shared")
        and "relative" not in str(path)
        and not ("cross_attention" in str(path) and path[-2].key in ("key", "value"))
    )


def test_arguments_shrink_by_a_byte_per_weight() -> None:
    floats, integers = decode_step(None), decode_step("int8")
    assert floats.estimate is not None
    assert integers.estimate is not None
    saved = floats.estimate.memory.arguments - integers.estimate.memory.arguments
    print(saved / weights_of_a_step(SMALL))
    assert 0.97 * weights_of_a_step(SMALL) < saved <= weights_of_a_step(SMALL)


def test_no_kernel_stands_in_bfloat16_outside_a_product(tmp_path: Path) -> None:
    decode_step("int8", tmp_path)
    [file] = tmp_path.iterdir()
    text = file.read_text(encoding="utf-8")
    # Instructions of the loop and around it: fusions convert in registers.
    fused = set(re.findall(r"calls=%?([\w.\-]+)", text))
    wide, computation = [], ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and line.endswith("{"):
            computation = line.removeprefix("ENTRY ").lstrip("%").split()[0].split("(")[0]
        shape = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = bf16\[([\d,]+)\]", line)
        if shape is None or computation in fused:
            continue
        if tuple(int(size) for size in shape[1].split(",")) in kernel_shapes():
            wide.append(line)
    assert wide == []
    assert re.search(r"s8\[256,512\]", text)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("shape", "cycles", "mebibytes", "arguments"),
    [(ONE_LONG, 668_040, 117.8, 191.8), (DIALOGUES, 2_387_084, 603.3, 465.3)],
    ids=["1 document", "8 documents"],
)
def test_a_step_on_a_tpu_takes_no_more_cycles_and_fewer_bytes_than_in_bfloat16(
    shape: BatchShape, cycles: int, mebibytes: float, arguments: float
) -> None:
    """cycles, mebibytes, arguments: in 8 bits, as in `docs/decoding.md`."""
    floats, integers = (
        decode_step(weights, config=T5_BASE, shape=shape).estimate for weights in (None, "int8")
    )
    assert floats is not None
    assert integers is not None
    print(f"{floats.work.cycles} cycles in bfloat16, {integers.work.cycles} in 8 bits")
    assert integers.work.cycles <= min(floats.work.cycles, SLACK * cycles)
    assert integers.work.bytes <= min(floats.work.bytes, SLACK * mebibytes * 2**20)
    assert integers.memory.arguments <= SLACK * arguments * 2**20
    # A byte per weight of the decoder and the token embeddings, less four per channel.
    saved = floats.memory.arguments - integers.memory.arguments
    assert 0.99 * weights_of_a_step(T5_BASE) < saved <= weights_of_a_step(T5_BASE)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("shape", "kernels", "mebibytes"),
    [(ONE_LONG, 41, 62.0), (DIALOGUES, 39, 315.9)],
    ids=["1 document", "8 documents"],
)
def test_a_gpu_converts_no_kernel_in_memory(
    shape: BatchShape, kernels: int, mebibytes: float, tmp_path: Path
) -> None:
    config = T5_BASE | {"num_layers": 2, "num_decoder_layers": 2}
    compiled = decode_step("int8", tmp_path, target="h100", config=config, shape=shape)
    assert compiled.estimate is not None
    [file] = tmp_path.iterdir()
    text = file.read_text(encoding="utf-8")
    (body,) = re.findall(r"body=%?([\w.\-]+)", text)
    computation = re.search(rf"^%?{re.escape(body)} .*?{{\n(.*?)^}}", text, re.M | re.S)
    assert computation is not None
    large = r"= \(?(bf16|f32)\[(768|3072|32128),\d+\]"
    wide = [line for line in computation.group(1).splitlines() if re.search(large, line)]
    assert [line for line in wide if " get-tuple-element(" not in line] == []
    assert compiled.estimate.work.kernels <= SLACK * kernels
    assert compiled.estimate.work.bytes <= SLACK * mebibytes * 2**20

"""Training on meshes of eight devices, in programs compiled for TPUs and GPUs."""

import math
import re

import pytest

from pid_jax.backends import prompt_attention
from pid_jax.data.batching import BatchShape
from pid_jax.training import config as configuration
from tests.helpers.targets import SMALL, compiled_request

pytestmark = [pytest.mark.targets, pytest.mark.slow]

DOCUMENTS = 40
"""No other axis has this size, nor that of a device's share."""
SHAPE = BatchShape(DOCUMENTS, 128, 3, 8, 16)
DATA, FSDP, ALL = (
    {"data": data, "fsdp": fsdp, "tensor": tensor}
    for data, fsdp, tensor in ((8, 1, 1), (1, 8, 1), (2, 2, 2))
)


@pytest.fixture
def compiled(tmp_path, capfd):
    def compiled(target, mesh):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        training = configuration.with_overrides(
            configuration.default(), ["--config.optimizer.name=adafactor"], "the test"
        )
        result = compiled_request(
            target, "train", SMALL, SHAPE, mesh=mesh, training=training, dump=folder
        )
        assert "full rematerialization" not in capfd.readouterr().err
        (file,) = folder.iterdir()
        return result.estimate, file.read_text()

    return compiled


def gathered(text):
    """The sizes of all arrays of floating point numbers that devices gather."""
    lines = [line for line in text.splitlines() if re.search(r" all-gather(-start)?\(", line)]
    results = [line.split(" all-gather")[0] for line in lines]
    return {
        tuple(map(int, sizes.split(",")))
        for result in results
        for sizes in re.findall(r"\b(?:bf16|f32)\[([\d,]+)\]", result)
    }


@pytest.mark.parametrize("mesh", [FSDP, ALL], ids=["fsdp", "all axes"])
def test_a_tpu_has_the_memory_and_traffic_of_split_batches(compiled, mesh):
    """No more than with whole parameters and an eighth of the batch on each device."""
    split, text = compiled("v5e:2x4", mesh)
    data, _ = compiled("v5e:2x4", DATA)
    assert split.memory.total < data.memory.total
    assert split.work.bytes < 1.1 * data.work.bytes
    logits = math.prod((DOCUMENTS, SHAPE.prompts, SHAPE.target_tokens, SMALL["vocab_size"]))
    sizes = re.findall(r"\b(?:bf16|f32)\[([\d,]+)\]", text)
    largest = max(math.prod(map(int, one.split(","))) for one in sizes)
    assert largest < logits


def test_blocks_of_a_gpu_gather_parameters_only(compiled, monkeypatch):
    """A block has documents of every device: none moves."""
    monkeypatch.setattr(prompt_attention, "STORED_SCORES", 1)
    _, text = compiled("h100:8", FSDP)
    assert "while" in text
    arrays = gathered(text)
    assert arrays
    assert not [one for one in arrays if DOCUMENTS in one or DOCUMENTS // 8 in one]

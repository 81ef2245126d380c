"""The decode step in programs compiled for a TPU v5e."""

from typing import Any

import pytest

from pid_jax.compile_ahead.estimate import ProgramEstimate
from pid_jax.data.batching import BatchShape
from tests.helpers.targets import DIALOGUES, program_estimate

pytestmark = [pytest.mark.targets, pytest.mark.slow, pytest.mark.optimised]

HEADS, WIDTH = 12, 64
T5_BASE = {
    "model_type": "t5",
    "vocab_size": 1024,
    "d_model": 768,
    "d_kv": WIDTH,
    "d_ff": 3072,
    "num_heads": HEADS,
}


def of_layers(layers: int, shape: BatchShape) -> ProgramEstimate:
    config: dict[str, Any] = {**T5_BASE, "num_layers": layers, "num_decoder_layers": layers}
    return program_estimate("v5e", "decode", config, shape)


@pytest.mark.parametrize(
    ("shape", "cycles"),
    [
        # About 3 % above the estimate. 620,000 with one layout for all backends.
        pytest.param(DIALOGUES, 189_000, id="8 documents, 30 prompts"),
        # 130,000 with one layout for all backends.
        pytest.param(BatchShape(1, 1536, 4, 9, 128), 39_200, id="1 long document, 4 prompts"),
    ],
)
def test_a_layer_of_a_decode_step_takes_few_cycles(shape: BatchShape, cycles: int) -> None:
    one, two = (of_layers(layers, shape) for layers in (1, 2))
    print(f"{one.work.cycles} cycles with a layer, {two.work.cycles} with two")
    assert two.work.cycles - one.work.cycles <= cycles


def test_nothing_copies_the_cache_around_the_loop() -> None:
    shape = DIALOGUES
    outside = of_layers(2, shape).outside
    assert outside is not None
    slots = shape.prompt_tokens + shape.target_tokens - 1
    cache = shape.documents * shape.prompts * slots * HEADS * WIDTH * 2
    print(f"{outside['copies'].bytes} bytes copied, {cache} bytes of keys in a layer")
    assert outside["copies"].bytes < cache

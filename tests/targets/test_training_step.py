"""The training step in programs compiled for a TPU v5e and an H100."""

import math
import re

import pytest

from pid_jax.data.batching import BatchShape
from pid_jax.training import config as configuration
from tests.helpers.targets import (
    SMALL,
    array_shapes,
    compiled_request,
    program_estimate,
    program_text,
)

pytestmark = [pytest.mark.targets, pytest.mark.slow]

SHAPE = BatchShape(8, 128, 4, 8, 16)


def with_layers(layers):
    return {**SMALL, "num_layers": layers, "num_decoder_layers": layers}


def training(**values):
    """The default training config with Adafactor, and other values by dotted keys."""
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return configuration.with_overrides(
        configuration.default(), ["--config.optimizer.name=adafactor", *overrides], "the test"
    )


@pytest.mark.parametrize("target", ["v5e", "h100"])
def test_rematerialisation_saves_temporaries(target):
    shape = BatchShape(32, 256, 8, 8, 16)

    def temporaries(remat):
        config = training(**{"train.remat": remat})
        estimate = program_estimate(target, "train", with_layers(4), shape, training=config)
        return estimate.memory.temporaries

    full, some, none = map(temporaries, ("full", "dots_with_no_batch_dims", "none"))
    assert full < some < none
    assert full < none / 2


@pytest.mark.parametrize("target", ["v5e", "h100"])
def test_scanned_layers_are_loops_of_the_compiled_program(target, tmp_path):
    def text(layers, scan_layers):
        folder = tmp_path / f"{layers} {scan_layers}"
        config = training(**{"model.scan_layers": scan_layers, "train.remat": "full"})
        sizes = with_layers(layers)
        return program_text(target, "train", sizes, SHAPE, training=config, dump=folder)

    few, many, unrolled = text(2, True), text(4, True), text(4, False)
    # The forward and the backward pass of an encoder and a decoder.
    assert loops(many) == loops(few) == loops(unrolled) + 4
    assert layer_products(many) == layer_products(few) < layer_products(unrolled)


def loops(text):
    return len(re.findall(r" while\(", text))


def layer_products(text):
    """The feed-forward products of the program, each of which may occur in several fusions."""
    return len(re.findall(r'op_name="[^"]*feed_forward[^"]*dot_general"', text))


def test_stacked_parameters_stay_split_over_devices():
    width, layers = 1024, 4
    sizes = with_layers(layers) | {"d_model": width, "d_ff": 4 * width, "num_heads": width // 64}
    config = training(**{"model.scan_layers": True, "train.remat": "full"})
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    compiled = compiled_request("v5e:2x4", "train", sizes, SHAPE, mesh=mesh, training=config)
    # Four and six projections, and two feed-forward kernels in each layer of a stack.
    stacks = 2 * layers * width**2 * (4 + 6 + 2 * 2 * 4)
    assert compiled.estimate.memory.temporaries < stacks / 2


@pytest.mark.parametrize("target", ["v5e", "h100"])
def test_no_array_contains_the_logits_of_all_targets(target, tmp_path):
    shape, vocabulary = BatchShape(64, 128, 4, 8, 16), 32128
    config = {**SMALL, "vocab_size": vocabulary}
    text = program_text(target, "train", config, shape, dump=tmp_path)
    largest = max(map(math.prod, array_shapes(text)))
    assert vocabulary * SMALL["d_model"] <= largest
    assert largest < shape.documents * shape.prompts * shape.target_tokens * vocabulary

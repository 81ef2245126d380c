"""Weights that no result can be computed with are refused by name when they are loaded."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pid_jax.checkpoints.finite import why_unusable
from pid_jax.checkpoints.orbax import RunCheckpoints
from pid_jax.checkpoints.trained_model import load_params
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from tests.helpers.training_checkpoints import numbers

NAME = "decoder.final_layer_norm.weight"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_found_wherever_it_stands(dtype, value):
    tensor = np.ones((2, 3, 2**21), dtype)
    assert why_unusable("a.weight", tensor) is None
    tensor[1, 2, 7] = value
    assert why_unusable("a.weight", tensor).startswith(
        f"a.weight holds {value}, first at [1, 2, 7]"
    )


def test_a_bias_of_the_logits_may_bar_a_token():
    bias = np.zeros((1, 9), np.float32)
    bias[0, 3] = -np.inf
    assert why_unusable("final_logits_bias", bias) is None
    bias[0, 4] = np.nan
    assert "holds nan, first at [0, 4]" in why_unusable("final_logits_bias", bias)


def test_the_largest_numbers_are_numbers():
    assert why_unusable("a", np.array([np.finfo(np.float32).max], np.float32)) is None
    assert why_unusable("a", np.array([jnp.finfo(jnp.bfloat16).max], jnp.bfloat16)) is None


def spoiled(model, directory, value):
    model.save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    tensors[NAME] = value(tensors[NAME])
    save_file(tensors, directory / "model.safetensors")


def with_nan(tensor):
    tensor[3] = np.nan
    return tensor


def test_a_checkpoint_that_holds_nan_is_refused_by_tensor(tiny_model, tmp_path):
    spoiled(tiny_model, tmp_path, with_nan)
    with pytest.raises(UserError, match=rf"{NAME} holds nan, first at \[3\]"):
        PidModel.from_pretrained(tmp_path)


def test_integers_are_no_weights(tiny_model, tmp_path):
    spoiled(tiny_model, tmp_path, lambda tensor: tensor.astype(np.int8))
    with pytest.raises(UserError, match=f"{NAME} is of type int8, not floating point"):
        PidModel.from_pretrained(tmp_path)


def test_a_run_whose_weights_hold_nan_is_refused_by_tensor(tmp_path):
    with RunCheckpoints(tmp_path, recent=1, best_metric="loss") as checkpoints:
        params = {"layer": {"kernel": jnp.full((3, 2), jnp.inf)}}
        checkpoints.save(1, {"params": params}, numbers())
    with pytest.raises(UserError, match=r"layer/kernel holds inf, first at \[0, 0\]"):
        load_params(tmp_path, "last")

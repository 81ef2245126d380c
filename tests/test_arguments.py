"""Numbers and lists of any kind are taken, the rest is refused by name."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pid_jax import arguments
from pid_jax.decoding.options import GenerationOptions, read_option
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel

INTEGERS = [5, np.int64(5), np.uint8(5), np.array(5), jnp.int32(5)]
NOT_INTEGERS = [5.0, np.float32(5), "5", b"5", True, np.True_, jnp.bool_(True), [5], np.array([5])]
OPTIONS = dict(vars(GenerationOptions()))
WHOLE = [name for name, default in OPTIONS.items() if type(default) is int]
REAL = [name for name, default in OPTIONS.items() if type(default) is float]


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_integers_of_any_kind_are_taken(value: Any) -> None:
    assert arguments.integer("n", value) == 5
    assert type(arguments.integer("n", value)) is int


@pytest.mark.parametrize("value", [*NOT_INTEGERS, None], ids=repr)
def test_what_is_no_integer_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"^n must be a whole number, not"):
        arguments.integer("n", value)


@pytest.mark.parametrize(
    "value", [2.5, np.float32(2.5), np.float64(2.5), np.array(2.5), jnp.bfloat16(2.5)], ids=repr
)
def test_real_numbers_of_any_kind_are_taken(value: Any) -> None:
    assert arguments.real("x", value) == 2.5
    assert type(arguments.real("x", value)) is float
    assert arguments.real("x", 2) == 2.0


@pytest.mark.parametrize(
    "value", ["2.5", True, np.True_, None, [2.5], np.array([2.5]), 1j], ids=repr
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"^x must be a number, not"):
        arguments.real("x", value)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [None, "x", 2.5, float("nan"), 1j, {"a": 1}], ids=repr)
def test_each_option_names_itself_where_it_refuses(name: str, value: Any) -> None:
    if (name in REAL and isinstance(value, float)) or (name == "logprobs" and value is None):
        return
    with pytest.raises(UserError, match=name):
        read_option(name, value)


@pytest.mark.parametrize("name", [*WHOLE, "do_sample"])
def test_options_of_whole_numbers_and_flags_take_nothing_else(name: str) -> None:
    for value in [1, 0] if name == "do_sample" else [5.0, True]:
        with pytest.raises(UserError, match=name):
            read_option(name, value)


def test_lists_may_be_arrays_and_are_made_plain() -> None:
    assert read_option("stop", ["end", np.array([5, 6])]) == ("end", (5, 6))
    assert read_option("suppress_tokens", np.array([3, 4])) == (3, 4)
    assert read_option("begin_suppress_tokens", [np.int64(7)]) == (7,)
    assert read_option("bad_words_ids", np.array([[5, 6], [7, 8]])) == ((5, 6), (7, 8))
    assert hash(GenerationOptions(bad_words_ids=[[5, 6]], suppress_tokens=[3]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stop", [5, 6], r"stop\[0\] must be text or a list of token ids, not an int \(5\)"),
        ("stop", [["a"]], r"stop\[0\]\[0\] must be a token id, .* not text"),
        ("suppress_tokens", [5.0], r"suppress_tokens\[0\] must be a token id, not a float"),
        ("suppress_tokens", [-1], r"suppress_tokens\[0\] must be a token id, not an int \(-1\)"),
        ("suppress_tokens", 5, "suppress_tokens must be a list of token ids, not an int"),
        ("bad_words_ids", [[5], []], r"bad_words_ids\[1\] is empty"),
        ("bad_words_ids", [5], r"bad_words_ids\[0\] must be a list of token ids, not an int"),
        ("bad_words_ids", ["word"], r"bad_words_ids\[0\] must be a list of token ids"),
    ],
)
def test_lists_of_another_kind_are_refused_by_their_place(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_option(name, value)


DOCUMENT, PROMPT = [5, 6, 7, 8, 9, 10], [3, 4, 5, 6]


def test_generate_takes_integers_of_any_kind(varied_model: PidModel) -> None:
    plain = varied_model.generate([DOCUMENT], [[PROMPT]], max_new_tokens=12, batch_size=1)
    for number in (np.int64(12), jnp.int32(12), np.array(12)):
        answers = varied_model.generate(
            [DOCUMENT], [[PROMPT]], max_new_tokens=number, batch_size=np.int32(1)
        )
        assert answers == plain


@pytest.mark.parametrize(
    "name", ["max_new_tokens", "min_new_tokens", "num_beams", "batch_tokens", "batch_size", "top_k"]
)
@pytest.mark.parametrize("value", [5.0, "5", True], ids=repr)
def test_generate_names_what_is_no_integer(varied_model: PidModel, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} must be a whole number, not"):
        varied_model.generate([DOCUMENT], [[PROMPT]], **{name: value})


@pytest.mark.parametrize("name", ["document_tokens", "prompts", "prompt_tokens", "documents"])
def test_warming_up_names_what_is_no_integer(varied_model: PidModel, name: str) -> None:
    sizes = {"document_tokens": 6, "prompts": 1, "prompt_tokens": 4}
    with pytest.raises(UserError, match=f"{name} must be a whole number, not 4.0"):
        varied_model.warm_up(**sizes | {name: 4.0})  # type: ignore[arg-type]


def test_a_stream_and_score_name_what_is_no_integer(varied_model: PidModel) -> None:
    with pytest.raises(UserError, match=r"every must be a whole number, not 2\.0"):
        varied_model.stream([DOCUMENT], [[PROMPT]], every=2.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"batch_size must be a whole number, not 2\.0"):
        varied_model.score([DOCUMENT], [[PROMPT]], [[[5]]], batch_size=2.0)  # type: ignore[arg-type]

"""Numbers that are none are an error that names the document and the prompt, never a result."""

import json

import jax
import numpy as np
import pytest

from pid_jax import predict
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import NotComputable, check_computed


def broken(model):
    """Every weight is finite, but what the encoder makes of them is not."""
    params = jax.tree.map(lambda leaf: leaf, dict(model.params))
    encoder = dict(params["encoder"])
    encoder["final_norm"] = jax.tree.map(lambda leaf: leaf * 3e38, encoder["final_norm"])
    return PidModel(model.model, {**params, "encoder": encoder}, model.tokenizer)


@pytest.fixture(scope="module")
def numbers(tiny_model):
    return broken(tiny_model)


DOCUMENTS, PROMPTS = [[5, 6], [7, 8]], [[], [[3], [4]]]
PLACE = r"documents\[1\], prompts\[0\]: the model computes NaN or infinity"


def test_a_score_that_is_no_number_is_an_error_by_document_and_prompt(numbers):
    with pytest.raises(NotComputable, match=PLACE):
        numbers.score(DOCUMENTS, PROMPTS, [[], [[4, 5], [6]]])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"draft_tokens": 2},
        {"do_sample": True},
        {"num_beams": 2},
        {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True},
    ],
)
def test_so_is_an_output(numbers, options):
    with pytest.raises(NotComputable, match=PLACE):
        numbers.generate(DOCUMENTS, PROMPTS, max_new_tokens=4, **options)


def test_so_is_a_streamed_one(numbers):
    with pytest.raises(NotComputable, match=PLACE):
        list(numbers.stream(DOCUMENTS, PROMPTS, max_new_tokens=4))


def test_what_cannot_be_has_the_score_minus_infinity():
    check_computed([-np.inf, -3.0], 0, 0)
    for value in (np.nan, np.inf):
        with pytest.raises(NotComputable):
            check_computed([-1.0, value], 0, 0)


def test_predict_names_document_and_prompt_by_their_ids(text_model, tmp_path, capsys):
    broken(text_model).save_pretrained(tmp_path / "checkpoint")
    line = {"id": "d7", "document": "a hotel", "subtasks": [{"id": "area", "prompt": "where"}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    arguments = ["--checkpoint", "checkpoint", "--input", "in.jsonl", "--output", "out.jsonl"]
    with pytest.raises(SystemExit) as stopped:
        predict.main([x if x.startswith("--") else str(tmp_path / x) for x in arguments])
    assert stopped.value.code == 2
    assert "error: document 'd7', prompt 'area': the model computes NaN" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()

"""Numbers here are worked by hand from the definition of ROUGE."""

import sys

import pytest

from pid_jax.errors import UserError
from pid_jax.metrics import rouge


def test_f_measures_of_one_text():
    pytest.importorskip("rouge_score", reason="an optional requirement")
    scores = rouge(["the cat sat"], ["the cat sat on the mat"])
    # Unigrams: 3 shared of 3 and 6. Bigrams: 2 shared of 2 and 5. Longest common run: 3.
    assert scores == {
        "rouge1": pytest.approx(2 * 1 * 0.5 / 1.5),
        "rouge2": pytest.approx(2 * 1 * 0.4 / 1.4),
        "rougeL": pytest.approx(2 * 1 * 0.5 / 1.5),
        "rougeLsum": pytest.approx(2 * 1 * 0.5 / 1.5),
    }


def test_scores_are_means_over_texts():
    pytest.importorskip("rouge_score", reason="an optional requirement")
    scores = rouge(["same words", "nothing"], ["same words", "in common"])
    assert scores == dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 0.5)


def test_words_are_not_stemmed():
    pytest.importorskip("rouge_score", reason="an optional requirement")
    assert rouge(["running"], ["run"])["rouge1"] == 0.0


def test_only_the_summary_level_score_forgives_the_order_of_lines():
    pytest.importorskip("rouge_score", reason="an optional requirement")
    scores = rouge(["red apples\ngreen pears"], ["green pears\nred apples"])
    assert scores["rougeL"] == 0.5
    assert scores["rougeLsum"] == 1.0


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match="pip install rouge-score"):
        rouge(["a"], ["a"])


def test_unequal_lengths_are_refused():
    with pytest.raises(UserError, match="2 predictions for 1 references"):
        rouge(["a", "b"], ["a"])


def test_no_texts_are_refused():
    with pytest.raises(UserError, match="no texts"):
        rouge([], [])


THAI, CHINESE = "แมวนั่งบนเสื่อ", "猫坐在垫子上 3 次"


@pytest.mark.parametrize("text", [THAI, CHINESE, "👍👍 🎉", "..."])
def test_a_script_that_the_tokenizer_drops_is_said(text, caplog):
    pytest.importorskip("rouge_score", reason="an optional requirement")
    rouge([text, "a cat"], [text, "a cat"])
    assert "knows the letters a to z and digits only" in caplog.text
    assert f"drops most of 2 of 4 texts, or all, such as {text!r}" in caplog.text


def test_latin_scripts_are_no_warning(caplog):
    pytest.importorskip("rouge_score", reason="an optional requirement")
    assert rouge(["le café est là 👋", "", " \n"], ["l'été", "", ""])["rouge1"] < 1.0
    assert caplog.text == ""


def test_a_tokenizer_of_the_users_own_splits_texts(caplog):
    pytest.importorskip("rouge_score", reason="an optional requirement")
    assert rouge([THAI, CHINESE], [THAI, CHINESE], tokenizer=list)["rouge2"] == 1.0
    # Characters: 3 shared of 4 and 5.
    assert rouge(["猫坐垫子"], ["猫在垫子上"], tokenizer=list)["rouge1"] == pytest.approx(6 / 9)
    assert caplog.text == ""
    for function in (str, len):
        with pytest.raises(UserError, match="tokenizer must return a list of tokens"):
            rouge(["a"], ["a"], tokenizer=function)

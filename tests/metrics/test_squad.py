"""Numbers here are worked by hand from the rules of SQuAD's evaluate-v2.0.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pid_jax.errors import UserError
from pid_jax.metrics import squad


def test_exact_and_f1_are_percentages_over_answerable_and_unanswerable_questions():
    references = {
        "exact": ["The Eiffel Tower"],
        "partial": ["in 1889", "March 1889"],
        "wrong": ["Paris"],
        "refused": [],
        "hallucinated": [],
    }
    predictions = {
        "exact": "eiffel tower!",  # article, case and punctuation do not matter
        "partial": "31 march 1889",  # best gold: 2 shared, precision 2/3, recall 1, F1 4/5
        "wrong": "London",
        "refused": "",
        "hallucinated": "something",
        "unasked": "ignored",
    }
    assert squad(predictions, references) == {
        "exact": pytest.approx(100 * 2 / 5),
        "f1": pytest.approx(100 * (1 + 0.8 + 0 + 1 + 0) / 5),
        "total": 5,
        "HasAns_exact": pytest.approx(100 * 1 / 3),
        "HasAns_f1": pytest.approx(100 * 1.8 / 3),
        "HasAns_total": 3,
        "NoAns_exact": pytest.approx(50.0),
        "NoAns_f1": pytest.approx(50.0),
        "NoAns_total": 2,
    }


def test_overlap_counts_repeated_words_as_often_as_both_have_them():
    scores = squad({"q": "new york new york"}, {"q": ["new york city"]})
    # Shared: new, york. Precision 2/4, recall 2/3.
    assert scores["f1"] == pytest.approx(100 * 2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))


def test_golds_of_articles_and_punctuation_alone_mean_no_answer_but_count_as_answerable():
    scores = squad({"q": "..."}, {"q": ["the", "?"]})
    assert scores["exact"] == scores["f1"] == scores["HasAns_exact"] == 100.0
    assert "NoAns_total" not in scores


def test_an_empty_gold_is_dropped_beside_a_real_one():
    assert squad({"q": ""}, {"q": ["", "yes"]})["exact"] == 0.0


@pytest.mark.parametrize(
    ("prediction", "gold"), [("", "word"), ("the", "word"), ("word", ""), ("word", "a")]
)
def test_f1_with_one_empty_side_is_zero(prediction, gold):
    assert squad({"q": prediction}, {"q": [gold]})["f1"] == 0.0


def test_articles_inside_words_stay():
    assert squad({"q": "theatre"}, {"q": ["atre"]})["exact"] == 0.0
    assert squad({"q": "an  apple"}, {"q": ["apple"]})["exact"] == 100.0


@given(st.dictionaries(st.text(), st.lists(st.text(), max_size=2), min_size=1))
def test_gold_against_gold_is_a_hundred_per_cent(references):
    predictions = {
        question: next((gold for gold in golds if squad({"": gold}, {"": golds})["exact"]), "")
        for question, golds in references.items()
    }
    scores = squad(predictions, references)
    assert scores["exact"] == scores["f1"] == 100.0


def test_a_missing_prediction_is_an_error():
    with pytest.raises(UserError, match=r"1 of 2 questions have no prediction.*'b'"):
        squad({"a": "x"}, {"a": ["x"], "b": []})


def test_no_questions_are_refused():
    with pytest.raises(UserError, match="no questions"):
        squad({}, {})


def test_a_string_in_place_of_a_list_of_golds_is_refused():
    with pytest.raises(UserError, match="give a list of golds"):
        squad({"a": "x"}, {"a": "x"})


def test_real_development_set_scores_its_own_first_golds_as_right(real_data):
    file = real_data / "squad/cs224n_squad/data/dev-v2.0.json"
    references = {
        question["id"]: [answer["text"] for answer in question["answers"]]
        for article in json.loads(file.read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    first_golds = {question: (golds or [""])[0] for question, golds in references.items()}
    scores = squad(first_golds, references)
    assert (scores["exact"], scores["f1"], scores["total"]) == (100.0, 100.0, 6078)


def test_squad_1_1_scores_a_gold_of_articles_and_punctuation_as_its_own_evaluation_does():
    # evaluate-v1.1.py: both normalise to "", which is equal, and share no word.
    scores = squad({"q": "The A,"}, {"q": ["The A,"]}, version="1.1")
    assert (scores["exact"], scores["f1"]) == (100.0, 0.0)
    # Beside another gold it is an answer still, which evaluate-v2.0.py drops.
    golds = {"q": ["The A,", "blue sky"]}
    assert squad({"q": "The A,"}, golds, version="1.1")["exact"] == 100.0
    assert squad({"q": "The A,"}, golds)["exact"] == 0.0
    # 1 word shared: precision 1, recall 1/2.
    assert squad({"q": "the sky"}, golds, version="1.1")["f1"] == pytest.approx(100 * 2 / 3)


def test_squad_1_1_has_an_answer_to_every_question():
    with pytest.raises(UserError, match=r"question 'q' has no gold, but SQuAD 1.1 requires one"):
        squad({"q": ""}, {"q": []}, version="1.1")
    with pytest.raises(UserError, match=r"choose from 1.1, 2.0"):
        squad({"q": ""}, {"q": [""]}, version="1")


@given(st.dictionaries(st.text(), st.lists(st.text(), min_size=1, max_size=2), min_size=1))
def test_a_gold_answer_is_right_by_exact_match_in_squad_1_1(references):
    for place in (0, -1):
        predictions = {question: golds[place] for question, golds in references.items()}
        assert squad(predictions, references, version="1.1")["exact"] == 100.0

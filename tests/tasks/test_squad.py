import json
import logging

import pytest

from pid_jax import tasks
from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from tests.helpers import mutations


def question(identifier, *answers, **more):
    return {
        "id": identifier,
        "question": f" What is {identifier}?",
        "answers": [{"text": text, "answer_start": 0} for text in answers],
        **more,
    }


DATA = {
    "version": "v2.0",
    "data": [
        {
            "title": "Sky",
            "paragraphs": [
                {
                    "context": "The sky is blue.",
                    "qas": [
                        question("q1", "blue", "the blue", is_impossible=False),
                        question("q2", is_impossible=True, plausible_answers=[]),
                    ],
                },
                {"context": "Nobody asks.", "qas": []},
            ],
        },
        {"title": "Sea", "paragraphs": [{"context": "Wet.", "qas": [question("q3", "wet")]}]},
    ],
}


def write(directory, data=DATA, name="dev-v2.0.json"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(json.dumps(data), encoding="utf-8")
    return directory


def one_question(question):
    return {"data": [{"paragraphs": [{"context": "c", "qas": [question]}]}]}


def read(path, split="validation", name="squad2", **options):
    return list(tasks.get(name, **options).examples(path, split))


def gold(examples):
    return {e.id: {s.id: s.target for s in e.subtasks} for e in examples}


def test_all_questions_of_a_paragraph_are_one_example(tmp_path):
    assert read(write(tmp_path)) == [
        Example(
            "1:1",
            "The sky is blue.",
            (
                Subtask("q1", "What is q1?", "blue", references=("blue", "the blue")),
                Subtask("q2", "What is q2?", "unanswerable", references=()),
            ),
        ),
        Example("2:1", "Wet.", (Subtask("q3", "What is q3?", "wet", references=("wet",)),)),
    ]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("squad1", ["train-v1.1.json", "dev-v1.1.json"]),
        ("squad2", ["train-v2.0.json", "dev-v2.0.json"]),
        ("radqa", ["train.json", "dev.json", "test.json"]),
    ],
)
def test_splits_have_the_names_of_the_benchmark_s_files(tmp_path, caplog, name, files):
    for file in files:
        write(tmp_path / "inner", one_question(question(file, "x")), file)
    for number, split in enumerate(tasks.SPLITS):
        [example] = read(tmp_path, split, name)
        assert example.subtasks[0].id == files[min(number, len(files) - 1)]
    # That a split is scored which has also chosen the checkpoint is said.
    assert ("serves as the split 'test'" in caplog.text) == (len(files) == 2)


def test_a_test_file_of_one_s_own_comes_before_the_development_file(tmp_path):
    write(tmp_path)
    write(tmp_path, one_question(question("mine", "x")), "test-v2.0.json")
    assert [e.subtasks[0].id for e in read(tmp_path, "test")] == ["mine"]


def test_one_file_serves_as_any_split(tmp_path, caplog):
    write(tmp_path, name="mine.json")
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path / "mine.json", "train")) == 2
    assert "mine.json is one file: it serves as the split 'train'" in caplog.text


def test_a_missing_split_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"there is no train-v2.0.json; it contains dev-v2.0.json"):
        read(write(tmp_path), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"no test-v2.0.json or dev-v2.0.json; it contains no files"
    ):
        read(tmp_path / "empty", "test")


def test_gold_scores_a_hundred_per_cent(tmp_path):
    examples = read(write(tmp_path))
    scores = tasks.get("squad2").score(examples, gold(examples)).metrics
    assert scores == {
        **{"exact": 100.0, "f1": 100.0, "total": 3},
        **{"HasAns_exact": 100.0, "HasAns_f1": 100.0, "HasAns_total": 2},
        **{"NoAns_exact": 100.0, "NoAns_f1": 100.0, "NoAns_total": 1},
    }


def score(references, prediction, **options):
    example = Example("p", "c", (Subtask("q", "?", "unused", references=tuple(references)),))
    metrics = tasks.get("squad2", **options).score([example], {"p": {"q": prediction}}).metrics
    return metrics["exact"], pytest.approx(metrics["f1"])


@pytest.mark.parametrize(
    ("golds", "prediction", "exact", "f1"),
    [
        # Each rule of normalisation alone.
        (["Blue"], "bLUE", 100, 100),
        (["blue"], "b.l,u-e!", 100, 100),
        (["a blue"], "the blue", 100, 100),
        (["blue sky"], " blue \t\n sky ", 100, 100),
        (["blue"], "bleu", 0, 0),
        (["a b"], "ab", 0, 0),
        (["blue"], "“blue”", 0, 0),  # only ASCII punctuation goes
        (["theory"], "ory", 0, 0),  # articles are whole words
        # Words in common; the best gold counts for each score by itself.
        (["deep blue sea"], "blue", 0, 50),  # precision 1, recall 1/3
        (["sky", "deep blue sea"], "deep sea", 0, 80),  # precision 1, recall 2/3
        (["blue blue"], "blue", 0, 200 / 3),  # counted as often as it is said
        (["blue sea", "the sea"], "blue sea", 100, 100),
        # Without an answer, on either side.
        ([], "", 100, 100),
        ([], "unanswerable", 100, 100),
        ([], " unanswerable\n", 100, 100),
        ([], "The...", 100, 100),
        ([], "blue", 0, 0),
        ([], "Unanswerable!", 0, 0),  # another text
        (["blue"], "unanswerable", 0, 0),
        (["blue"], "", 0, 0),
        (["blue"], "the", 0, 0),
        ([""], "", 100, 100),
        (["", "the"], "unanswerable", 100, 100),
        (["", "blue"], "", 0, 0),  # an empty one beside another does not count
    ],
)
def test_scores_of_one_question(golds, prediction, exact, f1):
    assert score(golds, prediction) == (exact, f1)


def test_groups_go_by_whether_there_are_answers(tmp_path):
    examples = read(write(tmp_path))
    predictions = {"1:1": {"q1": "blue", "q2": "red"}, "2:1": {"q3": "unanswerable"}}
    scores = tasks.get("squad2").score(examples, predictions).metrics
    assert (scores["HasAns_exact"], scores["NoAns_exact"]) == (50.0, 0.0)
    assert scores["f1"] == pytest.approx(100 / 3)


def test_what_stands_for_no_answer_can_be_chosen(tmp_path):
    task = tasks.get("squad2", no_answer="not in the text")
    examples = list(task.examples(write(tmp_path), "validation"))
    assert examples[0].subtasks[1].target == task.negative_target == "not in the text"
    assert score([], "not in the text", no_answer="not in the text") == (100, 100)
    assert score([], "unanswerable", no_answer="not in the text") == (0, 0)
    for text in ("", " x"):
        with pytest.raises(UserError, match="no_answer="):
            tasks.get("squad2", no_answer=text)


def test_an_answer_that_reads_as_no_answer_is_an_error(tmp_path):
    write(tmp_path, one_question(question("q", "unanswerable")))
    with pytest.raises(UserError, match=r"question 1: its answer 'unanswerable' is .* no_answer"):
        read(tmp_path)
    assert len(read(tmp_path, no_answer="none")) == 1


def test_without_answers_questions_can_be_answered_but_not_scored(tmp_path):
    for one in (question("q"), {"id": "q", "question": "?"}):
        [example] = read(write(tmp_path, one_question(one)))
        assert example.subtasks[0].target is None
        with pytest.raises(UserError, match=r"question 'q' of paragraph 1:1 has no answers to sc"):
            tasks.get("squad2").score([example], {"1:1": {"q": "x"}})


def test_squad_1_1_has_no_word_for_no_answer(tmp_path):
    with pytest.raises(UserError, match=r"paragraph 1, question 2: it has no answer.*squad2"):
        read(write(tmp_path, name="dev-v1.1.json"), name="squad1")
    write(tmp_path, one_question(question("q", "unanswerable")), "dev-v1.1.json")
    [example] = read(tmp_path, name="squad1")
    scores = tasks.get("squad1").score([example], {"1:1": {"q": "unanswerable"}}).metrics
    assert scores["exact"] == 100.0


MALFORMED = {
    '"data" is missing': {},
    "it asks no question": {"data": []},
    'article 1: "paragraphs" must be a list, got null': {"data": [{"paragraphs": None}]},
    'paragraph 1: "context" is missing': {"data": [{"paragraphs": [{}]}]},
    'paragraph 1: "context" is empty': {"data": [{"paragraphs": [{"context": " ", "qas": []}]}]},
    'paragraph 1: "qas" is missing': {"data": [{"paragraphs": [{"context": "c"}]}]},
    r"question 1: expected an object \{...\}, got a string": one_question("q"),
    'question 1: "question" is missing': one_question({"id": "q"}),
    'question 1: "answers" must be a list, got an object': one_question(
        {"id": "q", "question": "?", "answers": {}}
    ),
    'question 1, answer 1: "text" must be a string, got a number': one_question(question("q", 1)),
    "article 2, paragraph 1: a second question has the id 'q3'": {
        "data": [DATA["data"][1], DATA["data"][1]]
    },
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_file_is_named_with_its_place(tmp_path, message):
    with pytest.raises(UserError, match=f"dev-v2.0.json.*{message}"):
        read(write(tmp_path, MALFORMED[message]))


def test_a_missing_prediction_is_an_error(tmp_path):
    examples = read(write(tmp_path))
    with pytest.raises(UserError, match="no prediction for subtask 'q2' of example '1:1'"):
        tasks.get("squad2").score(examples, {"1:1": {"q1": ""}, "2:1": {"q3": ""}})


@pytest.mark.parametrize(
    ("name", "file"),
    [("squad1", "dev-v1.1.json"), ("squad2", "dev-v2.0.json"), ("radqa", "dev.json")],
)
def test_damaged_files_are_refused(tmp_path, name, file):
    data = {"data": DATA["data"][1:]} if name == "squad1" else DATA
    files = {file: json.dumps(data).encode()}
    outcomes = mutations.read_mutated(lambda path: read(path, name=name), files, tmp_path)
    assert outcomes.total() == 500
    assert outcomes["refused"] > 300


def test_real_squad_2_development_file_is_all_there(real_data):
    path = real_data / "squad/cs224n_squad/data"
    examples = read(path)
    assert len(examples) == 646
    assert sum(len(e.subtasks) for e in examples) == 6078
    scores = tasks.get("squad2").score(examples, gold(examples)).metrics
    assert (scores["exact"], scores["f1"], scores["NoAns_f1"]) == (100.0, 100.0, 100.0)

    # Its test file has no answers.
    examples = read(path, "test")
    assert sum(len(e.subtasks) for e in examples) == 5915
    with pytest.raises(UserError, match="this file is for predictions only"):
        tasks.get("squad2").score(
            examples, {e.id: {s.id: "x" for s in e.subtasks} for e in examples}
        )


def test_real_squad_1_1_questions_are_all_there(real_data):
    examples = read(real_data / "squad/xquad/xquad.en.json", name="squad1")
    assert (len(examples), sum(len(e.subtasks) for e in examples)) == (240, 1190)
    scores = tasks.get("squad1").score(examples, gold(examples)).metrics
    assert (scores["exact"], scores["f1"]) == (100.0, 100.0)


def test_ids_may_be_integers_as_covid_qa_has_them(tmp_path):
    questions = [
        question(262, "blue", is_impossible=False),
        question(-7, "wet"),
        question(10**20, "x"),
    ]
    data = {"data": [{"paragraphs": [{"context": "c", "document_id": 630, "qas": questions}]}]}
    [example] = read(write(tmp_path, data, "COVID-QA.json") / "COVID-QA.json", "train")
    assert [subtask.id for subtask in example.subtasks] == ["262", "-7", "1" + 20 * "0"]
    data = {"data": [{"paragraphs": [{"context": "c", "qas": [question(1), question("1")]}]}]}
    with pytest.raises(UserError, match="question has the id '1'"):
        read(write(tmp_path, data))


def test_squad_1_1_is_scored_by_its_own_rules_and_squad_2_by_its_own(tmp_path):
    data = one_question(question("q", "The A,"))
    for name, file, f1 in (("squad1", "dev-v1.1.json", 0.0), ("squad2", "dev-v2.0.json", 100.0)):
        task = tasks.get(name)
        examples = list(task.examples(write(tmp_path / name, data, file), "validation"))
        report = task.score(examples, gold(examples))
        assert (report.metrics["exact"], report.metrics["f1"]) == (100.0, f1)
        assert report.policy["rules"] == f"those of SQuAD {file[5:8]}'s evaluation"

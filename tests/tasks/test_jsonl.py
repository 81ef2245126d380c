import json
import zipfile
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pid_jax import tasks
from pid_jax.data.examples import Example, Subtask
from pid_jax.errors import UserError
from pid_jax.tasks import jsonl
from tests.helpers import mutations

LINE = {
    "id": "d1",
    "document": "the sky is blue",
    "subtasks": [{"id": "q1", "prompt": "colour", "target": "blue"}, {"id": "q2", "prompt": "x"}],
}
EXAMPLE = Example("d1", "the sky is blue", (Subtask("q1", "colour", "blue"), Subtask("q2", "x")))

TEXT = st.text(st.characters(codec="utf-8"))


def changed(**changes):
    """LINE with some keys replaced; None takes a key away."""
    line = {**LINE, **changes}
    return json.dumps({key: value for key, value in line.items() if value is not None})


def allowing(texts):
    return changed(subtasks=[{"id": "q1", "prompt": "p", "allowed": texts}])


def test_a_line_is_one_example():
    assert jsonl.parse_line(json.dumps(LINE), "in.jsonl", 1) == EXAMPLE


def test_other_keys_and_null_targets_are_ignored():
    subtask = {"id": "q1", "prompt": "p", "target": None, "prediction": "y", "score": -0.5}
    example = jsonl.parse_line(changed(subtasks=[subtask], source="web"), "in.jsonl", 1)
    assert example.subtasks == (Subtask("q1", "p"),)


@given(
    st.text(st.characters(codec="utf-8"), min_size=1),
    TEXT.filter(str.strip),
    st.lists(
        st.tuples(TEXT.filter(bool), TEXT, st.none() | TEXT),
        min_size=1,
        max_size=3,
        unique_by=lambda subtask: subtask[0],
    ),
)
def test_any_text_survives(identifier, document, subtasks):
    line = {
        "id": identifier,
        "document": document,
        "subtasks": [dict(zip(("id", "prompt", "target"), s, strict=True)) for s in subtasks],
    }
    for ensure_ascii in (True, False):
        example = jsonl.parse_line(json.dumps(line, ensure_ascii=ensure_ascii), "in.jsonl", 1)
        assert (example.id, example.document) == (identifier, document)
        assert [(s.id, s.prompt, s.target) for s in example.subtasks] == subtasks


@given(st.text())
def test_text_that_is_no_object_is_a_user_error(text):
    with suppress(json.JSONDecodeError):
        assume(not isinstance(json.loads(text), dict))
    with pytest.raises(UserError, match=r"^in.jsonl, line 7: "):
        jsonl.parse_line(text, "in.jsonl", 7)


MALFORMED = {
    "{": "not JSON: .* at character 2",
    "[" * 100_000: "not JSON",
    "[]": "expected an object",
    "null": r"expected an object \{\.\.\.\}, got null",
    changed(id=None): '"id" is missing',
    changed(id=3.0): '"id" must be a string or an integer, got a number',
    changed(id=True): '"id" must be a string or an integer, got a boolean',
    changed(id=""): '"id" is empty',
    changed(document=None): '"document" is missing',
    changed(document=["a"]): '"document" must be a string, got a list',
    changed(document=" "): '"document" is empty',
    changed(document="\ud800"): '"document" has an unpaired surrogate',
    changed(subtasks=None): '"subtasks" is missing',
    changed(subtasks={}): '"subtasks" must be a list, got an object',
    changed(subtasks=[]): '"subtasks" is empty',
    changed(subtasks=["colour"]): r"subtask 1: expected an object \{\.\.\.\}, got a string",
    changed(subtasks=[{"prompt": "p"}]): 'subtask 1: "id" is missing',
    changed(subtasks=[{"id": "q"}]): 'subtask 1: "prompt" is missing',
    changed(subtasks=[{"id": "q", "prompt": True}]): '"prompt" must be a string, got a boolean',
    changed(subtasks=[{"id": "q", "prompt": "p", "target": 1}]): '"target" must be a string',
    changed(subtasks=[{"id": "q", "prompt": "p"}] * 2): "two subtasks have the id 'q'",
    allowing("north"): 'subtask 1: "allowed" must be a list of strings, got a string',
    allowing([]): 'subtask 1: "allowed" is empty',
    allowing(["a", 4]): 'subtask 1: "allowed" 2 must be a string, got a number',
    allowing(["\ud800"]): 'subtask 1: "allowed" 1 has an unpaired surrogate',
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.items(), ids=range(len(MALFORMED)))
def test_a_malformed_line_is_named(text, message):
    with pytest.raises(UserError, match=f"^in.jsonl, line 7.*{message}"):
        jsonl.parse_line(text, "in.jsonl", 7)


def test_a_missing_target_is_an_error_where_targets_are_needed():
    with pytest.raises(UserError, match='line 1, subtask 2: "target" is missing'):
        jsonl.parse_line(json.dumps(LINE), "in.jsonl", 1, require_target=True)


def test_a_file_is_read_in_order_and_blank_lines_are_skipped(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(f"{changed(id='b')}\n\n{changed(id='a')}", encoding="utf-8")
    assert [example.id for example in jsonl.read(file)] == ["b", "a"]


def test_an_error_counts_blank_lines(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n\n{{", encoding="utf-8")
    with pytest.raises(UserError, match=r"in.jsonl, line 3: not JSON"):
        list(jsonl.read(file))


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_bytes(json.dumps(LINE).encode() + b'\n{"id": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"in.jsonl, line 2: not UTF-8 at byte 12"):
        list(jsonl.read(file))


def test_a_document_id_used_twice_is_an_error(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n{json.dumps(LINE)}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: the id 'd1' was already used in line 1"):
        list(jsonl.read(file))


def test_bad_lines_can_be_left_out_and_are_reported():
    stream = [
        json.dumps(LINE).encode(),
        b"{",
        b"",
        b'{"id": "caf\xe9"}',
        changed(document=None, id="d2").encode(),
        json.dumps(LINE).encode(),
        changed(id="d2").encode(),  # the line that used this id before was bad
    ]
    errors: list[str] = []
    read = jsonl.read_stream(stream, "-", on_bad_line=lambda error: errors.append(str(error)))
    assert [example.id for _, example in read] == ["d1", "d2"]
    assert [error.split(": ")[0] for error in errors] == [f"-, line {n}" for n in (2, 4, 5, 6)]
    assert errors[3].endswith("the id 'd1' was already used in line 1")


def test_a_subtask_may_list_what_is_allowed():
    for texts, expected in ((["north", ""], ("north", "")), (None, None)):
        [subtask] = jsonl.parse_line(allowing(texts), "in.jsonl", 1).subtasks
        assert subtask.allowed == expected


def test_a_line_can_be_bad_for_reasons_of_the_callers():
    def check(example, where):
        if example.id == "d2":
            raise UserError(f"{where}: no")

    stream = [changed(id=f"d{number}").encode() for number in (1, 2, 3, 3)]
    errors: list[str] = []
    read = jsonl.read_stream(
        stream, "-", check=check, on_bad_line=lambda error: errors.append(str(error))
    )
    assert [example.id for _, example in read] == ["d1", "d3"]
    assert errors == ["-, line 2: no", "-, line 4: the id 'd3' was already used in line 3"]


def test_a_stream_of_bad_lines_only_is_not_empty():
    errors: list[UserError] = []
    assert list(jsonl.read_stream([b"{"], "-", on_bad_line=errors.append)) == []
    assert len(errors) == 1
    with pytest.raises(UserError, match="empty"):
        list(jsonl.read_stream([b"\n"], "-", on_bad_line=errors.append))


def test_a_stream_that_fails_is_a_user_error():
    def failing():
        yield json.dumps(LINE).encode()
        raise OSError(5, "Input/output error")

    with pytest.raises(UserError, match=r"-: cannot be read \(Input/output error\)"):
        list(jsonl.read_stream(failing(), "-"))


def test_an_id_is_found_again_among_many():
    stream = [changed(id=f"d{number % 5000}").encode() for number in range(5001)]
    read = jsonl.read_stream(stream, "-")
    assert sum(1 for _ in zip(range(5000), read, strict=False)) == 5000
    with pytest.raises(UserError, match=r"line 5001: the id 'd0' was already used in line 1$"):
        next(read)


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 2**64 // 1024))
def test_ids_whose_hashes_collide_are_told_apart(numbers, stride):
    table = jsonl._FirstLines()
    first: dict[int, int] = {}
    for line_number, number in enumerate(numbers, start=1):
        # hash(n) is n for integers: these all want the same slot.
        found = table.of(1024 * stride * number % 2**60, line_number)
        assert found == first.setdefault(1024 * stride * number % 2**60, line_number)


def test_an_empty_or_missing_file_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty.jsonl: the file is empty"):
        list(jsonl.read(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match=r"missing.jsonl: cannot be read"):
        list(jsonl.read(tmp_path / "missing.jsonl"))


def test_a_directory_has_a_file_for_each_split_and_a_file_serves_any(tmp_path):
    task = tasks.get("jsonl")
    subtasks = [{"id": "q", "prompt": "p", "target": "t"}]
    for split in ("train", "test"):
        line = changed(id=split, subtasks=subtasks)
        (tmp_path / f"{split}.jsonl").write_text(line, encoding="utf-8")
    assert [example.id for example in task.examples(tmp_path, "train")] == ["train"]
    assert [example.id for example in task.examples(tmp_path, "test")] == ["test"]
    assert [e.id for e in task.examples(str(tmp_path / "test.jsonl"), "validation")] == ["test"]
    with pytest.raises(
        UserError, match=r"no validation.jsonl; it contains test.jsonl, train.jsonl"
    ):
        task.examples(tmp_path, "validation")


def test_a_split_lies_in_the_directory_itself_or_somewhere_below_or_in_a_zip(tmp_path):
    task = tasks.get("jsonl")
    subtasks = [{"id": "q", "prompt": "p", "target": "t"}]
    for folder in ("old", "older", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        line = changed(id=folder, subtasks=subtasks)
        (tmp_path / folder / "test.jsonl").write_text(line, encoding="utf-8")
    assert [example.id for example in task.examples(tmp_path, "test")] == ["."]
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "old/test.jsonl", "data/test.jsonl")
    assert [example.id for example in task.examples(tmp_path / "data.zip", "test")] == ["old"]
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test.jsonl occurs more than once"):
        task.examples(tmp_path, "test")


def test_damaged_files_are_refused(tmp_path):
    lines = [{**LINE, "id": f"d{n}", "subtasks": LINE["subtasks"][:1]} for n in range(3)]
    files = {"test.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}
    task = tasks.get("jsonl")
    outcomes = mutations.read_mutated(lambda path: task.examples(path, "test"), files, tmp_path)
    assert outcomes.total() == 500
    assert outcomes["refused"] > 300


def test_an_unusable_path_is_an_error(tmp_path):
    task = tasks.get("jsonl")
    with pytest.raises(UserError, match="no such file or directory"):
        task.examples(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="path is not set"):
        task.examples(None, "train")
    with pytest.raises(UserError, match="unknown split 'dev'"):
        task.examples(tmp_path, "dev")


def test_scores_are_means_over_subtasks():
    examples = [
        Example("a", "d", (Subtask("1", "p", "The Cat"), Subtask("2", "p", "a blue sky"))),
        Example("b", "d", (Subtask("1", "p", ""), Subtask("2", "p", "x"))),
    ]
    predictions = {
        "a": {"1": " The Cat ", "2": "sky"},  # F1 of "sky" and "blue sky": 2/3
        "b": {"1": "", "2": "y"},
    }
    report = tasks.get("jsonl").score(examples, predictions)
    assert report.metrics == {
        "exact_match": pytest.approx(2 / 4),
        "f1": pytest.approx((1 + 2 / 3 + 1 + 0) / 4),
    }
    assert report.policy.keys() >= {"exact_match", "f1"}


def test_other_scores_can_be_selected_by_name():
    pytest.importorskip("rouge_score", reason="an optional requirement")
    task = tasks.get("jsonl", metrics="rouge, exact_match, tests.helpers.own_scores:lengths")
    example = Example("d1", "d", (Subtask("1", "p", "the sky"), Subtask("2", "p", "sea")))
    report = task.score([example], {"d1": {"1": "the sky", "2": "a ship"}})
    rouge = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 0.5)
    assert report.metrics == {**rouge, "exact_match": 0.5, "longest": 7.0, "shortest": 6.0}
    assert report.policy["lengths"] == "computed by tests.helpers.own_scores:lengths"
    with pytest.raises(UserError, match="unknown metric 'bleu': choose from exact_match, f1, r"):
        tasks.get("jsonl", metrics="bleu")


def test_a_tokenizer_for_rouge_can_be_named():
    pytest.importorskip("rouge_score", reason="an optional requirement")
    example = Example("d1", "d", (Subtask("1", "p", "猫坐在垫子上"),))
    answers = {"d1": {"1": "猫坐在垫子上"}}
    report = tasks.get("jsonl", metrics="rouge").score([example], answers)
    assert report.metrics["rouge1"] == 0.0
    assert "words of the letters a to z and digits" in report.policy["rouge"]
    task = tasks.get("jsonl", metrics="rouge", rouge_tokenizer="builtins:list")
    report = task.score([example], answers)
    assert report.metrics["rouge1"] == 1.0
    assert "tokens by builtins:list" in report.policy["rouge"]
    for options in (
        {"rouge_tokenizer": "nowhere:f"},
        {"metrics": "f1", "rouge_tokenizer": "builtins:list"},
    ):
        with pytest.raises(UserError, match="tokenizer"):
            tasks.get("jsonl", **{"metrics": "rouge", **options})


def test_a_missing_prediction_is_an_error():
    task = tasks.get("jsonl")
    with pytest.raises(UserError, match="no prediction for example 'd1'"):
        task.score([EXAMPLE], {})
    with pytest.raises(UserError, match="no prediction for subtask 'q1' of example 'd1'"):
        task.score([EXAMPLE], {"d1": {}})
    with pytest.raises(UserError, match="subtask 'q2' of example 'd1' has no target"):
        task.score([EXAMPLE], {"d1": {"q1": "blue", "q2": "x"}})

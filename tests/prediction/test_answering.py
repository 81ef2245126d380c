"""Answers in order, each once, however often the run that makes them is stopped."""

import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pid_jax.atomic_file import ResumableFile, partial_path
from pid_jax.data.examples import Example
from pid_jax.errors import UserError
from pid_jax.evaluation.predictions import answered
from pid_jax.inference.results import Generation, TokenLogprob
from pid_jax.prediction import answering
from pid_jax.prediction.answering import Counts, answer_lines
from pid_jax.tasks import jsonl
from tests.helpers.questions import question, text_of


class Killed(BaseException):
    pass


def answer(examples: Sequence[Example]) -> list[list[Generation]]:
    """Shows which examples were answered in one call, as rounding would."""
    first = examples[0].id
    return [
        [Generation(f"{first} {e.id} {s.id}", [], -1 / len(e.document)) for s in e.subtasks]
        for e in examples
    ]


def complete(
    output: Path,
    text: bytes,
    documents_at_once: int,
    answer: Callable[[Sequence[Example]], Sequence[Sequence[Generation]]] = answer,
    settings: dict[str, Any] | None = None,
) -> Counts:
    counts = Counts()
    with ResumableFile(output) as file:
        if file.settings is None:
            file.restart(settings or {})
        lines = jsonl.read_stream(io.BytesIO(text), "in.jsonl")
        answer_lines(lines, file, answer, documents_at_once=documents_at_once, counts=counts)
        file.finish()
    return counts


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests with a thousand runs, none of which meets a power failure."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("no_fsync")
def test_a_run_stopped_at_any_byte_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    text = text_of(*range(5))
    complete(tmp_path / "whole", text, 2)
    whole = (tmp_path / "whole").read_bytes()
    for cut in range(len(whole) + 1):
        output = tmp_path / "output"
        with ResumableFile(output) as file:
            file.restart({})
            file.append(whole[:cut])
        counts = complete(output, text, 2)
        assert output.read_bytes() == whole
        assert (counts.documents, counts.prompts) == (5, 1 + 2 + 3 + 1 + 2)
        assert counts.documents_before == whole[:cut].count(b"\n")


@pytest.mark.usefixtures("no_fsync")
def test_however_often_it_is_stopped_the_output_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    @settings(max_examples=50)
    @given(
        st.integers(1, 12),
        st.integers(1, 5),
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 300)), max_size=5),
    )
    def check(documents: int, at_once: int, stops: list[tuple[int, int]]) -> None:
        folder = tmp_path_factory.mktemp("stops")
        text = text_of(*range(documents))
        complete(folder / "whole", text, at_once)
        output = folder / "output"
        for windows, torn_bytes in stops:
            left = windows

            def until_killed(examples: Sequence[Example]) -> list[list[Generation]]:
                nonlocal left
                if not left:
                    raise Killed
                left -= 1
                return answer(examples)

            try:
                complete(output, text, at_once, until_killed)
            except Killed:
                assert not output.exists()
            else:
                break
            if partial_path(output).exists():  # and some of the next window was written
                have = partial_path(output).read_bytes()
                more = (folder / "whole").read_bytes()[len(have) :][:torn_bytes]
                partial_path(output).write_bytes(have + more)
        complete(output, text, at_once)
        assert output.read_bytes() == (folder / "whole").read_bytes()
        assert sorted(path.name for path in folder.iterdir()) == ["output", "whole"]

    check()


def stopped_after(output: Path, windows: int, text: bytes, documents_at_once: int) -> None:
    calls = 0

    def until_killed(examples: Sequence[Example]) -> list[list[Generation]]:
        nonlocal calls
        calls += 1
        if calls > windows:
            raise Killed
        return answer(examples)

    with pytest.raises(Killed):
        complete(output, text, documents_at_once, until_killed)


@pytest.mark.parametrize(
    "changed",
    [
        text_of(0, 1, 2),
        text_of(1, 0, 2, 3, 4),
        text_of(1, 2, 3, 4),
        text_of(7, 0, 1, 2, 3, 4),
        text_of(*range(5)).replace(b"text 2", b"text two"),
        text_of(*range(5)).replace(b'"prompt": "p2"', b'"prompt": "P2"'),
        text_of(*range(5)).replace(b'"id": "d2"', b'"source": "web", "id": "d2"'),
    ],
    ids=["shorter", "reordered", "removed", "inserted", "document", "prompt", "other key"],
)
def test_another_input_is_refused_and_what_was_answered_stays(
    tmp_path: Path, changed: bytes
) -> None:
    output = tmp_path / "out.jsonl"
    stopped_after(output, 2, text_of(*range(5)), 2)
    before = partial_path(output).read_bytes()
    with pytest.raises(UserError, match=r"the input is not the one .* --restart"):
        complete(output, changed, 2)
    assert partial_path(output).read_bytes() == before
    assert before.count(b"\n") == 4
    assert not output.exists()


def test_lines_not_yet_answered_may_change_and_more_may_come(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    stopped_after(output, 2, text_of(*range(5)), 2)
    complete(output, text_of(0, 1, 2, 3, 14, 5, 6), 2)
    ids = [json.loads(line)["id"] for line in output.read_bytes().splitlines()]
    assert ids == ["d0", "d1", "d2", "d3", "d14", "d5", "d6"]


def test_earlier_predictions_in_the_input_are_replaced_also_on_resuming(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    complete(first, text_of(*range(4)), 1)
    stopped_after(second, 1, first.read_bytes(), 2)
    counts = complete(second, first.read_bytes(), 2)
    assert counts.documents_before == 2
    complete(tmp_path / "expected.jsonl", text_of(*range(4)), 2)
    assert second.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_odd_values_elsewhere_on_a_line_are_passed_on(tmp_path: Path) -> None:
    line = question(0) | {"half": "\ud83d", "numbers": [float("inf"), 1e-7, 10**30], "none": None}
    text = json.dumps(line).encode() + b"\n" + text_of(1)
    output = tmp_path / "out.jsonl"
    stopped_after(output, 1, text, 1)
    assert complete(output, text, 1).documents_before == 1
    written = json.loads(output.read_bytes().splitlines()[0])
    assert {key: written[key] for key in line if key != "subtasks"} == {
        key: line[key] for key in line if key != "subtasks"
    }


CARRIED = [
    '{"id": 7, "document": "d", "subtasks": [{"id": "q", "prompt": "p"',
    '{"n": 1e400,"id":"a","document":"d",'
    '"subtasks":[ {"n": 12345678901234567.89,"id":"q" ,"prompt":"p"',
    '{"a": 1, "a": 2, "id": "a", "document": "d", '
    '"subtasks": [{"b": [1], "b": [2], "id": "q", "prompt": "p"',
    '{"n": [-0.0, 1E5, 1.10, 1' + 30 * "0" + '], "id": "a", "document": "d\\u00e9\\/", '
    '"subtasks": [{"id": "q", "prompt": "é"',
    '{"n": ' + 5000 * "9" + ', "id": "a", "document": "d", "subtasks": [{"id": "q", "prompt": "p"',
]


@pytest.mark.parametrize("line", CARRIED, ids=range(len(CARRIED)))
def test_what_a_line_carries_along_is_copied_byte_for_byte(tmp_path: Path, line: str) -> None:
    for end, rest in (("}]}", "\n"), ('\t} ] , "z": 1e400 }', "\r\n")):
        output = tmp_path / "out.jsonl"
        complete(output, f"{line}{end}{rest}".encode(), 1)
        answer = f', "prediction": "{jsonl.parse_line(line + end, "", 1).id}'
        written = output.read_text("utf-8")
        head, _, said = written.partition(', "prediction": ')
        assert head == line.rstrip()
        assert said.partition(', "score": -')[2].partition("}")[2] == end.lstrip()[1:] + "\n"
        assert answer in written
        # Read again, earlier answers are replaced.
        complete(tmp_path / "again.jsonl", output.read_bytes(), 1)
        assert (tmp_path / "again.jsonl").read_text("utf-8") == written


@given(st.lists(st.sampled_from(["prediction", "score", "alternatives", "id", "prompt", "x"])))
def test_earlier_answers_are_dropped_wherever_they_stand(keys: list[str]) -> None:
    keys = [*dict.fromkeys(keys)]
    keys += [key for key in ("id", "prompt") if key not in keys]
    subtask = ", ".join(f'"{key}": "{key}, }}]"' for key in keys)
    text = f'{{"id": "a", "document": "d", "subtasks": [{{{subtask}}}]}}'
    others = ", ".join(f'"{k}": "{k}, }}]"' for k in keys if k in ("id", "prompt", "x"))
    said = '"prediction": "y", "score": -0.5'
    assert answered(text, [Generation("y", [], -0.5)]) == (
        f'{{"id": "a", "document": "d", "subtasks": [{{{others}, {said}}}]}}'
    )


def line_with(document: str = '"id": "a", "document": "d"', subtask: str = "") -> str:
    return f'{{{document}, "subtasks": [{{"id": "q", "prompt": "p"{subtask}}}]}}'


REPEATED = [
    line_with('"id": "a", "id": "b", "document": "d"'),
    line_with('"id": "a", "document": "c", "document": "d"'),
    line_with('"id": "a", "document": "d", "subtasks": []'),
    line_with(subtask=', "prompt": "p"'),
    line_with(subtask=', "target": "", "target": ""'),
    line_with(subtask=', "allowed": ["a"], "allowed": null'),
]


@pytest.mark.parametrize("line", REPEATED, ids=range(len(REPEATED)))
def test_a_repeated_key_that_is_ours_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r'in.jsonl, line 3.*: the key "[a-z]+" occurs twice'):
        jsonl.parse_line(line, "in.jsonl", 3)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(derandomize=True)
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.integers(0, 2), st.booleans())
def test_whatever_a_line_carries_it_comes_back(
    carried: dict[str, Any], number: int, spaced: bool
) -> None:
    line = question(number) | {f"x{key}": value for key, value in carried.items()}
    for subtask in line["subtasks"]:
        subtask |= {f"x{key}": value for key, value in carried.items()}
    text = json.dumps(line, separators=(" , ", " : ") if spaced else (",", ":"))
    answers = [Generation('"}]', [], -0.5)] * len(line["subtasks"])
    for subtask in line["subtasks"]:
        subtask |= {"prediction": '"}]', "score": -0.5}
    written = answered(text, answers)
    assert json.loads(written) == line
    assert answered(written, answers) == written


def test_what_the_model_rules_out_has_the_score_null() -> None:
    text = '{"id": 1, "document": "", "subtasks": [{"id": "q", "prompt": ""}]}'
    logprobs = (TokenLogprob(3, -math.inf, ((4, -0.5), (3, -math.inf))),)
    line = answered(text, [Generation("\udc80", [3], -math.inf, (), "stop", logprobs)])
    [subtask] = json.loads(line, parse_constant=pytest.fail)["subtasks"]
    assert subtask["score"] is None
    assert subtask["logprobs"] == [{"token": 3, "logprob": None, "top": [[4, -0.5], [3, None]]}]
    assert answering._answers(line.encode() + b"\n", text)

"""What the official evaluation does was read from its scripts in wyim/aci-bench."""

import csv
import io
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pid_jax import tasks
from pid_jax.errors import UserError
from pid_jax.tasks.aci_bench import DIVISIONS, EMPTY, divisions, joined, note_scores
from tests.helpers import mutations

STEMS = {
    "train": "train",
    "validation": "valid",
    "test1": "clinicalnlp_taskB_test1",
    "test2": "clinicalnlp_taskC_test2",
    "test3": "clef_taskC_test3",
}
HEADERS = {
    "CHIEF COMPLAINT": "subjective",
    "Hpi notes: cough": "subjective",
    "History:": "subjective",
    "PHYSICAL EXAMINATION": "objective_exam",
    "  vitals reviewed.": "objective_exam",
    "Exam": "objective_exam",
    "Results of today": "objective_results",
    "findings :": "objective_results",
    "ASSESSMENT AND PLAN": "assessment_and_plan",
    "A/P: rest": "assessment_and_plan",
    "p:": "assessment_and_plan",
    "IMPRESSION": "assessment_and_plan",
}
LINES = st.sampled_from([*HEADERS, "", "He feels well.", "Impression: none", "a :", "\r"])

NOTE = "CHIEF COMPLAINT\n\nCough.\n\nEXAM\n\nLungs clear.\n\nPLAN\n\nRest.\n"
ENTRIES = {
    "subjective": "CHIEF COMPLAINT\n\nCough.\n\n",
    "objective_exam": "EXAM\n\nLungs clear.\n\n",
    "objective_results": f"objective_results: {EMPTY}.\n",
    "assessment_and_plan": "PLAN\n\nRest.\n",
}


def cut_files(stem="clinicalnlp_taskB_test1", ids=("D1-aci", "D2-aci")):
    return {
        f"challenge_data_json/{stem}_{division}.json": json.dumps(
            {
                "data": [
                    {"src": f"[doctor] hello {i}", "tgt": text, "file": f"{i}-{division}"}
                    for i in ids
                ]
            }
        ).encode()
        for division, text in ENTRIES.items()
    }


def full_files(stem="clinicalnlp_taskB_test1", ids=("D1", "D2")):
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["dataset", "encounter_id", "dialogue", "note"])
    rows.writerows(["aci", i, f"[doctor] hello {i}-aci", NOTE] for i in ids)
    return {f"challenge_data/{stem}.csv": text.getvalue().encode()}


def write(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def read(path, split="test", **options):
    return list(tasks.get("aci_bench", **options).examples(path, split))


def targets(examples):
    return {e.id: {s.id: s.target for s in e.subtasks} for e in examples}


@pytest.mark.parametrize(("line", "division"), HEADERS.items())
def test_a_header_at_the_start_of_a_line_starts_its_division(line, division):
    assert divisions(f"CC: x\n{line}")[division].endswith(line)
    assert divisions(f"x {line}") == {"subjective": f"x {line}"}


@pytest.mark.parametrize(
    "line", ["the results", "a :", "planned", "Impression", "examined", "ccu", "- exam:"]
)
def test_what_is_no_header_starts_no_division(line):
    assert divisions(f"\n{line}") == {"subjective": f"\n{line}"}


def test_what_precedes_the_first_header_is_subjective():
    assert divisions("Well.\nPLAN\nRest.") == {
        "subjective": "Well.\n",
        "assessment_and_plan": "PLAN\nRest.",
    }
    assert divisions("\nPLAN") == {"subjective": "\n", "assessment_and_plan": "PLAN"}
    assert divisions("PLAN\nRest.\nCC: cough") == {
        "assessment_and_plan": "PLAN\nRest.\n",
        "subjective": "CC: cough",
    }
    assert divisions("") == {"subjective": ""}


def check_properties(note):
    cut = divisions(note)
    assert "".join(cut.values()) == note  # in order of position, everything once
    assert set(cut) <= set(DIVISIONS)
    position = 0
    for division, text in cut.items():
        # Cut anew, the start of the note does not have this division yet: a first occurrence.
        # (An empty start counts as subjective.)
        assert position == 0 or division not in divisions(note[: position - 1])
        # It starts with a header of its own, unless it starts the note.
        assert position == 0 or next(iter(divisions(text))) == division
        assert position == 0 or note[position - 1] == "\n"
        position += len(text)


@given(st.lists(LINES, max_size=12).map("\n".join))
def test_divisions_follow_each_other_from_their_first_headers_on(note):
    check_properties(note)
    expected: list[str] = []
    for number, line in enumerate(note.split("\n")):
        division = HEADERS.get(line, "subjective" if number == 0 else None)
        if division is not None and division not in expected:
            expected.append(division)
    assert list(divisions(note)) == expected


def test_a_note_is_joined_from_the_divisions_that_are_not_empty():
    assert joined(ENTRIES) == NOTE
    assert joined({"assessment_and_plan": "PLAN", "subjective": "CC", "objective_exam": " "}) == (
        "CC\nPLAN"
    )


@pytest.mark.parametrize("files", [cut_files(), full_files()], ids=["divisions", "full notes"])
def test_each_conversation_has_a_prompt_for_each_of_four_divisions(tmp_path, files):
    examples = read(write(tmp_path, files))
    assert [(e.id, e.document) for e in examples] == [
        ("D1-aci", "[doctor] hello D1-aci"),
        ("D2-aci", "[doctor] hello D2-aci"),
    ]
    assert targets(examples) == {"D1-aci": ENTRIES, "D2-aci": ENTRIES}
    assert len({s.prompt for s in examples[0].subtasks}) == 4


def test_splits_and_test_sets_have_their_files(tmp_path):
    for name, stem in STEMS.items():
        write(tmp_path, cut_files(stem, [name]))
    for split in ("train", "validation"):
        assert [e.id for e in read(tmp_path, split)] == [split]
    for name in ("test1", "test2", "test3"):
        assert [e.id for e in read(tmp_path, test_set=name)] == [name]
    with pytest.raises(UserError, match="test_set='test4': choose from test1, test2, test3"):
        tasks.get("aci_bench", test_set="test4")


def test_files_that_are_missing_or_do_not_match_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"there is no train.csv; it contains no files"):
        read(tmp_path, "train")
    files = cut_files()
    last = "challenge_data_json/clinicalnlp_taskB_test1_assessment_and_plan.json"
    other = cut_files(ids=["D1-aci", "D3-aci"])[last]
    with pytest.raises(UserError, match=r"plan.json, entry 2: its file or src is not that of"):
        read(write(tmp_path, files | {last: other}))
    with pytest.raises(UserError, match=r"differ in length: 2 in .*, 1 in .*_plan.json"):
        read(write(tmp_path, files | {last: cut_files(ids=["D1-aci"])[last]}))
    with pytest.raises(UserError, match=r"subjective.json, entry 2: a second entry is called 'D'"):
        read(write(tmp_path, cut_files(ids=["D", "D"])))
    (tmp_path / last).unlink()
    with pytest.raises(UserError, match=r"there is no clinicalnlp_taskB_test1_assessment_and_p"):
        read(tmp_path)


def test_a_line_break_can_be_written_as_something_that_a_tokenizer_knows(tmp_path):
    pytest.importorskip("rouge_score", reason="an optional requirement")
    task = tasks.get("aci_bench", line_break=" | ")
    examples = list(task.examples(write(tmp_path, cut_files()), "test"))
    assert examples[0].subtasks[0].target == "CHIEF COMPLAINT |  | Cough. |  | "
    # As T5's tokenizer gives it back: single spaces, none at the ends.
    tidied = {
        i: {d: " ".join(text.split()) for d, text in texts.items()}
        for i, texts in targets(examples).items()
    }
    scores = task.score(examples, tidied).metrics
    assert (scores["rougeLsum"], scores["objective_exam_rouge1"]) == (1.0, 1.0)


def test_a_division_s_score_counts_line_breaks_and_missing_divisions_as_words():
    pytest.importorskip("rouge_score", reason="an optional requirement")
    scores = note_scores(["CC: cough\nPLAN\nrest"], ["CC: cough\nEXAM\nclear"])
    # "cc cough lf1" on both sides.
    assert scores["subjective"]["rouge2"] == 1.0
    # "exam lf1 clear" against "empty".
    assert scores["objective_exam"]["rouge1"] == 0.0
    # "empty" on both sides: one word, no pair of words.
    results = scores["objective_results"]
    assert (results["rouge1"], results["rouge2"]) == (1.0, 0.0)
    # The note: 2 of 4 words are shared.
    assert scores["note"]["rouge1"] == pytest.approx(0.5)


def test_scores_are_those_of_rouge_score_called_directly(tmp_path):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="an optional requirement")
    task = tasks.get("aci_bench")
    examples = list(task.examples(write(tmp_path, cut_files()), "test"))
    predictions = targets(examples) | {
        "D2-aci": {
            "subjective": "CHIEF COMPLAINT\nA dry cough.",
            "objective_exam": f"objective_exam: {EMPTY}.",
            "objective_results": "RESULTS\nNone.",
            "assessment_and_plan": "PLAN\nRest and tea.",
        }
    }
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=False)

    def mean(first, second):
        scores = [scorer.score(target=gold, prediction=text) for gold, text in (first, second)]
        return {kind: sum(score[kind].fmeasure for score in scores) / 2 for kind in kinds}

    expected = mean(
        (NOTE, NOTE),
        (NOTE, "CHIEF COMPLAINT\nA dry cough.\nRESULTS\nNone.\nPLAN\nRest and tea."),
    )
    exam = "EXAM__lf1____lf1__Lungs clear.__lf1____lf1__"
    results = "RESULTS__lf1__None.__lf1__"
    by_division = {
        "objective_exam": mean((exam, exam), (exam, EMPTY)),
        "objective_results": mean((EMPTY, EMPTY), (EMPTY, results)),
    }
    report = task.score(examples, predictions)
    scores = report.metrics
    assert {kind: scores[kind] for kind in kinds} == expected
    assert report.tables["rouge1 of the note and its divisions"] == {
        "note": scores["rouge1"],
        **{division: scores[f"{division}_rouge1"] for division in DIVISIONS},
    }
    for division, of_division in by_division.items():
        assert {kind: scores[f"{division}_{kind}"] for kind in kinds} == of_division


def test_a_missing_prediction_is_an_error(tmp_path):
    examples = read(write(tmp_path, cut_files()))
    predictions = targets(examples)
    del predictions["D2-aci"]["objective_exam"]
    with pytest.raises(UserError, match="subtask 'objective_exam' of example 'D2-aci'"):
        tasks.get("aci_bench").score(examples, predictions)


@pytest.mark.parametrize("files", [cut_files(), full_files()], ids=["divisions", "full notes"])
def test_damaged_files_are_refused(tmp_path, files):
    outcomes = mutations.read_mutated(read, files, tmp_path)
    assert outcomes.total() == 500
    assert outcomes["refused"] > 300


def test_real_notes_are_cut_as_the_release_has_them(real_data):
    data = real_data / "aci-bench/data"
    orders: Counter[tuple[str, ...]] = Counter()
    different = []
    for split, stem in STEMS.items():
        name, options = (split, {}) if split in tasks.SPLITS else ("test", {"test_set": split})
        cut = read(data / "challenge_data_json", name, **options)
        full = read(data / "challenge_data", name, **options)
        assert [(e.id, e.document) for e in cut] == [(e.id, e.document) for e in full]
        different += [e.id for e, other in zip(cut, full, strict=True) if e != other]
        whole = json.loads((data / f"challenge_data_json/{stem}_full.json").read_text("utf-8"))
        for entry, example in zip(whole["data"], full, strict=True):
            check_properties(entry["tgt"])
            orders[tuple(divisions(entry["tgt"]))] += 1
            assert joined({s.id: s.target for s in example.subtasks}) == entry["tgt"]
    # One plan ends in a sentence that starts with "Physical exam": a later part of the exam to
    # the release, part of the plan to the evaluation, for which the first header counts.
    assert different == ["D2N030-virtscribe"]
    assert orders.total() == 207
    assert all(list(order) == [d for d in DIVISIONS if d in order] for order in orders)


def test_real_notes_have_the_scores_of_rouge_score_called_directly(real_data):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="an optional requirement")
    task = tasks.get("aci_bench")
    examples = list(task.examples(real_data / "aci-bench", "validation"))[5:10]
    texts = targets(examples)
    # Each note is predicted to be that of the next conversation.
    following = {e.id: texts[examples[(n + 1) % 5].id] for n, e in enumerate(examples)}
    scores = task.score(examples, following).metrics

    file = real_data / "aci-bench/data/challenge_data_json/valid_full.json"
    notes = [entry["tgt"] for entry in json.loads(file.read_text("utf-8"))["data"]][5:10]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        direct = [
            scorer.score(target=note, prediction=notes[(n + 1) % 5])[kind].fmeasure
            for n, note in enumerate(notes)
        ]
        assert scores[kind] == sum(direct) / 5
    assert 0.1 < scores["rougeL"] < 0.9


def test_real_gold_notes_score_one_except_for_pairs_of_words_in_missing_divisions(real_data):
    pytest.importorskip("rouge_score", reason="an optional requirement")
    task = tasks.get("aci_bench")
    examples = list(task.examples(real_data / "aci-bench", "validation"))
    report = task.score(examples, targets(examples))
    missing = {"objective_exam_rouge2": 1, "objective_results_rouge2": 2}
    assert report.metrics == {
        name: 1.0 if name not in missing else (20 - missing[name]) / 20 for name in report.metrics
    }

"""A few cases of the fuzz with every run of the tests, some hundreds with the slow ones.

`python -m tests.fuzz --cases 2000` runs more, `--case N` one of them again.
"""

import numpy as np
import pytest

from pid_jax import programs
from tests.fuzz import cases, checks, endurance, pairs, plain, theirs, watchdog
from tests.fuzz.cases import CASES_ALIKE


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    theirs.quiet()
    yield
    checks.forget()


# Seeds and kinds, whose programs are what takes time. What each is drawn for:
FEW = [
    (0, 4),  # LongT5, greedy, compacted
    (0, 1),  # BART, documents of very different work, allowed outputs
    (0, 3),  # T5Gemma, prompt in encoder, prompt lookup
]
MORE = [
    (1, 10),  # mT5, two beams that never stop early
    (2, 4),  # PEGASUS, four beams, allowed outputs, compacted
    (1, 4),  # T5, greedy, several batches
]


def cases_of(kinds, count):
    return [cases.draw(seed, CASES_ALIKE * kind + i) for seed, kind in kinds for i in range(count)]


def assert_explained(drawn):
    tally = checks.Tally()
    for case in drawn:
        checks.check(case, tally)
    print(tally)
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.counts["prompts equal to plain greedy"]
    assert tally.counts["prompts equal to transformers' greedy"]


def test_generate_equals_plain_greedy_and_transformers():
    assert_explained(cases_of(FEW, 12))


@pytest.mark.slow
def test_generate_equals_plain_greedy_and_transformers_at_length():
    assert_explained(cases_of(MORE, 10))


def test_the_cases_have_every_family_and_kind_of_decoding():
    drawn = [case.kind for case in cases_of(FEW + MORE, 1)]
    assert {kind.pair for kind in drawn} == {*pairs.NAMES}
    assert {kind.method for kind in drawn} == {"pid", "pie"}
    assert {min(kind.num_beams, 2) for kind in drawn} == {1, 2}
    assert {kind.compact for kind in drawn} == {"auto", True, False}
    for of in ("limited", "lopsided", "batched", "draft_tokens"):
        assert {bool(getattr(kind, of)) for kind in drawn} == {True, False}
    rules = {name for case in cases_of(FEW, 12) for name in case.options}
    assert rules >= {"min_new_tokens", "stop", "repetition_penalty", "no_repeat_ngram_size"}
    assert rules >= {"suppress_tokens", "begin_suppress_tokens", "bad_words_ids"}
    assert any(case.every for case in cases_of(FEW, 12))


@pytest.mark.slow
def test_a_process_has_few_programs_and_memory_maps(monkeypatch):
    """After 12 calls of random sizes as after 6: what is dropped is given back."""
    monkeypatch.setattr(programs, "PROCESS_CAPACITY", 5)
    first, second = endurance.run(calls=12, seed=0, every=6)
    assert (first.programs, second.programs) == (5, 5)
    assert second.maps < 1.2 * first.maps


def test_a_case_is_drawn_from_its_seed_and_number_alone():
    assert str(cases.draw(3, 17)) == str(cases.draw(3, 17))
    assert str(cases.draw(3, 17)) != str(cases.draw(4, 17))
    assert (
        len({cases.draw(0, number).kind for number in range(0, 20 * CASES_ALIKE, CASES_ALIKE)}) > 15
    )


def test_a_call_that_does_not_return_is_a_fault(monkeypatch):
    def never(*_, **__):
        while True:
            pass

    monkeypatch.setattr(pairs.of("t5").ours.__class__, "generate", never)
    tally = checks.Tally()
    checks.check(cases.draw(0, 0), tally, seconds=1)
    [fault] = tally.faults
    assert fault.startswith("HANG: no result after 1 s\n  case 0: ")


def test_a_wrong_token_is_a_fault(monkeypatch):
    """And so is a wrong score: the comparison would show both."""
    pair = pairs.of("t5")
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    request = plain.Request(pair, [5, 6, 7], [8], options, None)
    right = plain.greedy(request, [])
    assert len(right.tokens) == 6
    wrong = [*right.tokens[:3], 2 + (right.tokens[3] - 1) % 22, *right.tokens[4:]]
    with pytest.raises(plain.Fault, match=r"plain greedy takes \d+, generate \d+"):
        plain.greedy(request, wrong)
    assert theirs.generate(request)[0].tokens == right.tokens


def test_the_watchdog_leaves_calls_in_time_alone():
    with watchdog.limit(60):
        assert np.add(1, 1) == 2

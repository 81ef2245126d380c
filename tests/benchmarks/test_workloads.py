"""The questions of the engines."""

from benchmarks.workloads import WORKLOADS, Workload, questions


def test_the_workloads_are_those_of_the_comparison() -> None:
    assert WORKLOADS["dst"] == Workload("t5-base", 1, 512, 30, 8, 8)
    assert WORKLOADS["note"] == Workload("t5-base", 1, 1536, 4, 8, 128)
    assert WORKLOADS["qa"] == Workload("t5-base", 1, 256, 6, 16, 12)


def test_a_batched_workload_is_eight_documents_of_the_same_for_the_small_model() -> None:
    for name in ("dst", "note", "qa"):
        one, batched = WORKLOADS[name], WORKLOADS[f"{name}_batched"]
        assert (batched.model, batched.documents) == ("t5-small", 8)
        assert (one.document_tokens, one.prompts, one.prompt_tokens, one.new_tokens) == (
            batched.document_tokens,
            batched.prompts,
            batched.prompt_tokens,
            batched.new_tokens,
        )


def test_questions_have_the_requested_sizes_and_no_special_tokens() -> None:
    made = questions(Workload("t5-tiny", 2, 7, 3, 5, 4), seed=0)
    assert [len(document) for document in made.documents] == [7, 7]
    assert [[len(p) for p in prompts] for prompts in made.prompts] == [[5] * 3] * 2
    assert min(token for document in made.documents for token in document) > 2
    assert made.new_tokens == 4


def test_a_seed_gives_the_same_questions_again() -> None:
    workload = WORKLOADS["tiny"]
    assert questions(workload, 1) == questions(workload, 1)
    assert questions(workload, 1) != questions(workload, 2)

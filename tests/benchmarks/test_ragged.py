"""What documents of many sizes cost: what the measurement counts."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from benchmarks import ragged


@pytest.fixture(autouse=True)
def setting_restored() -> Iterator[None]:
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_the_first_call_compiles_and_further_ones_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model=t5-tiny", "--documents=4", "--repeats=2", f"--output={tmp_path}"]
    assert ragged.main(options) == 0
    result = json.loads((tmp_path / "ragged.json").read_text())
    assert result["model"] == "t5-tiny"
    assert [call["documents"] for call in result["calls"]] == [4, 4, 4]
    assert result["calls"][0]["padding_tokens"] > 0
    assert result["programs"] > 0
    assert result["compile_seconds"] > 0
    assert len(result["later_call_seconds"]) == 2
    assert capsys.readouterr().out.startswith(f"{result['programs']} programs, ")


def test_documents_and_prompts_are_as_described() -> None:
    documents, prompts = ragged.questions(200, vocabulary=100)
    assert {len(document) for document in documents} <= set(range(30, 901))
    assert {len(row) for row in prompts} == set(range(5, 31))
    assert (documents, prompts) == ragged.questions(200, vocabulary=100)

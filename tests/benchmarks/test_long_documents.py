"""What longer documents cost: the measurement, and what it is compared with."""

import json

import pytest

from benchmarks import long_documents


def records(model: str, *sizes: int) -> list[dict[str, object]]:
    """Of documents of 1,024, 2,048, ... tokens."""
    seconds = {"median": 0.5, "min": 0.25, "max": 1.0}
    return [
        {"model": model, "program": "encoding", "tokens": 1024 << i, "bytes": size, **seconds}
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("measured", "right"),
    [
        (records("LED", 10 << 20, 20 << 20, 40 << 20), True),
        (records("LED", 10 << 20, 15 << 20, 16 << 20), True),
        (records("LED", 10 << 20, 20 << 20, 50 << 20), False),
        (records("T5", 10 << 20, 40 << 20), True),
        (records("LED", 10 << 20) + records("LongT5 local", 90 << 20), True),
    ],
)
def test_memory_may_not_grow_faster_than_documents_but_t5s(measured, right) -> None:
    assert long_documents.passed(measured) == right


def test_the_table_has_the_cost_of_a_token() -> None:
    line = long_documents.table(records("LED", 10 << 20)).splitlines()[1]
    assert line.split() == [
        "LED",
        "encoding",
        "1,024",
        "0.500",
        "0.250",
        "–",
        "1.000",
        "488.3",
        "10.0",
        "10.00",
    ]


def test_what_is_measured_is_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        long_documents, "MODELS", {"LongT5 local": long_documents.MODELS["LongT5 local"]}
    )
    arguments = ["--tokens", "64", "--repeats", "3", f"--output={tmp_path}"]
    assert long_documents.main(arguments) == 0
    result = json.loads((tmp_path / "long_documents.json").read_text())
    assert [(one["program"], one["tokens"]) for one in result["measured"]] == [
        ("encoding", 64),
        ("training", 64),
    ]
    for one in result["measured"]:
        assert one["bytes"] > 64 * long_documents.WIDTH * 4
        assert len(one["seconds"]) == 3
    assert "LongT5 local" in capsys.readouterr().out

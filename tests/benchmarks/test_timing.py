"""Who is run when, and how often."""

import pytest

from benchmarks import timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only when told to."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    return now


def test_engines_run_in_turn(clock: list[float]) -> None:
    order: list[str] = []
    engines = {
        name: (timing.Timed("only", {}, None), lambda name=name: order.append(name))
        for name in ("a", "b")
    }
    timing.in_turn(engines, repeats=3, budget=60)
    assert order == ["a", "b"] * 3


def test_a_slow_engine_stops_after_three_runs(clock: list[float]) -> None:
    def take(seconds: float) -> None:
        clock[0] += seconds

    slow = (timing.Timed("only", {}, None), lambda: take(40))
    fast = (timing.Timed("only", {}, None), lambda: take(1))
    timing.in_turn({"slow": slow, "fast": fast}, repeats=5, budget=60)
    assert slow[0].seconds == [40.0] * 3
    assert fast[0].seconds == [1.0] * 5


def test_the_fastest_configuration_remains(clock: list[float]) -> None:
    starting = {"eager": 9.0, "fused": 5.0}

    def configured(name: str, seconds: float) -> str:
        clock[0] += seconds + starting.pop(name, 0.0)
        return name

    timed, run = timing.warm_up(
        {"eager": lambda: configured("eager", 0.5), "fused": lambda: configured("fused", 1.0)}
    )
    assert timed.variant == "eager"
    assert timed.warm_up == {"eager": 9.5, "fused": 6.0}
    assert run() == "eager"
    assert timed.seconds == []


def test_the_summary_has_median_and_extremes() -> None:
    timed = timing.Timed("only", {"only": 9.0}, None, [3.0, 1.0, 8.0])
    summary = timed.summary()
    assert (summary["median"], summary["min"], summary["max"]) == (3.0, 1.0, 8.0)
    assert summary["seconds"] == [3.0, 1.0, 8.0]

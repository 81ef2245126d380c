"""Compilation ahead of time: by `warm_up`, and of a call's later shapes."""

import logging
import threading
from typing import Any

import pytest

from pid_jax import programs
from pid_jax.inference import batch_planning
from pid_jax.inference.model import PidModel
from tests.helpers.many_prompts import NEW_TOKENS, PROMPTS, Cases, assert_same, generate, plain


@pytest.mark.parametrize(
    "options",
    [
        {"compact": True, "draft_tokens": 2, "stop": [[5, 7], [9]]},
        {"method": "pie", "compact": False, "do_sample": True, "num_return_sequences": 2},
    ],
    ids=["drafts", "samples"],
)
def test_after_a_warm_up_nothing_is_compiled(
    varied_model: PidModel,
    cases: Cases,
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    gathers_on_host: bool,
) -> None:
    model = PidModel(varied_model.model, varied_model.params)
    caplog.set_level(logging.INFO, logger="pid_jax")
    table = model.warm_up(32, PROMPTS, 4, NEW_TOKENS, **options)
    assert table is model.programs
    warm = len(table.compilations)
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if message.startswith("compiled the")]) == warm
    moves = [one for one in table.compilations if one.program == "compaction"]
    assert bool(moves) == (options["compact"] and not gathers_on_host)
    long = next(i for i, document in enumerate(cases.documents) if len(document) == 32)
    one = Cases(cases.documents[long:][:1], cases.prompts[long:][:1])
    generate(model, one, batch_size=20, **options)
    assert len(model.programs.compilations) == warm


def test_later_shapes_are_compiled_by_other_threads(
    varied_model: PidModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by the caller's, whose settings of JAX may be its own."""
    model = PidModel(varied_model.model, varied_model.params)
    traced, compiled = [], []
    trace, compile_ = programs.Executable.trace, programs._compiled

    def recorded_trace(program: programs.Executable, *arguments: Any) -> None:
        traced.append(threading.current_thread())
        trace(program, *arguments)

    def recorded_compile(*arguments: Any) -> Any:
        compiled.append(threading.current_thread())
        return compile_(*arguments)

    monkeypatch.setattr(programs.Executable, "trace", recorded_trace)
    monkeypatch.setattr(programs, "_compiled", recorded_compile)
    sizes = [(200, 9), (90, 3), (30, 1)]
    some = Cases([[5] * size for size, _ in sizes], [[[7]] * count for _, count in sizes])
    limits = batch_planning.BatchLimits(4096, 1, tokens_per_shape=0)
    monkeypatch.setattr(batch_planning.BatchLimits, "by_default", lambda *_: limits)
    for _ in range(2):
        answers, _ = generate(model, some, batch_size=1)
        assert len(traced) == len(compiled) == len(model.programs.compilations)
    assert set(traced) == {threading.current_thread()}
    assert set(compiled) - set(traced)
    assert len(model.programs.compilations) == 3 * len(sizes)
    assert_same(answers, plain(varied_model, some))

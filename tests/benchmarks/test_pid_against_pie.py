"""Estimates of both methods: extrapolation, the time of a call, the table, and resumption."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import estimates, pid_against_pie
from benchmarks.pid_against_pie import Case
from pid_jax.chips import Chip

TPU = Chip("TPU", "tpu", 16 << 30, 100.0, 10.0, 1.0, clock_hertz=2.0)
GPU = Chip("GPU", "gpu", 80 << 30, 100.0, 10.0, 1.0, clock_hertz=None)


def program(**more: float | None) -> dict[str, float | None]:
    return dict.fromkeys(estimates.FIGURES, 0.0) | more


def test_every_figure_is_on_a_line_through_two_depths() -> None:
    points = {2: program(flops=14.0, kernels=9.0), 4: program(flops=24.0, kernels=9.0)}
    whole = estimates.at_depth(points, 12)
    assert whole["flops"] == 4 + 5 * 12
    assert whole["kernels"] == 9


def test_a_program_that_the_compiler_refuses_has_no_time_but_its_memory() -> None:
    refused = program(cycles=None, needed_bytes=30.0)
    whole = estimates.at_depth({1: program(cycles=5.0, needed_bytes=20.0), 2: refused}, 12)
    assert whole["cycles"] is None
    assert whole["needed_bytes"] == 10 + 10 * 12
    assert estimates.seconds(whole, TPU, 1) is None


def test_one_depth_is_no_line() -> None:
    with pytest.raises(ValueError, match="not only 2"):
        estimates.at_depth({2: program()}, 12)


def test_a_call_is_a_prefill_the_steps_after_it_and_what_surrounds_the_loop() -> None:
    prefill = program(flops=300.0, cycles=10.0, temporary_bytes=7.0, needed_bytes=8.0)
    step = program(flops=2.0, cycles=4.0, outside_cycles=6.0, temporary_bytes=5.0, needed_bytes=9.0)
    call = estimates.whole_call(prefill, step, 16, TPU)
    # 10 cycles, 15 steps of 4, and 6 cycles, at 2 a second.
    assert call["seconds"] == 5 + 15 * 2 + 3
    assert call["flops"] == 300 + 15 * 2
    assert call["temporary_bytes"] == 7
    assert call["needed_bytes"] == 9


def test_a_kernel_of_a_gpu_takes_2_5_microseconds_and_its_bytes_take_longer() -> None:
    assert estimates.seconds(program(kernels=400.0), GPU, 1) == pytest.approx(1e-3)
    assert estimates.seconds(program(kernels=400.0, bytes=20.0), GPU, 1) == 2.0


def test_devices_share_flops_and_collectives_add_to_the_time() -> None:
    one = program(flops=800.0, collective_bytes=3.0)
    assert estimates.seconds(one, TPU, 4) == 2.0 + 3.0


def test_figures_are_read_from_the_json_of_compile_ahead() -> None:
    path = Path(pid_against_pie.DIRECTORY) / "decode_v5e_8x512.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    read = estimates.figures(entry)
    assert set(read) == set(estimates.FIGURES)
    assert read["cycles"] == entry["estimated_cycles"]
    assert read["outside_cycles"] == entry["outside_loop"]["estimated_cycles"]
    assert estimates.figures({"flops": 3, "seconds": None, "needed_bytes": 5}) == {
        **dict.fromkeys(estimates.FIGURES),
        "flops": 3,
        "needed_bytes": 5,
    }


def test_layers_are_those_of_both_stacks() -> None:
    sizes = pid_against_pie.with_layers({"num_layers": 12, "num_decoder_layers": 12}, 2)
    assert sizes == {"num_layers": 2, "num_decoder_layers": 2}
    stacks = {name: {"num_hidden_layers": 26} for name in ("encoder", "decoder")}
    gemma = pid_against_pie.with_layers({"model_type": "t5gemma", **stacks}, 4)
    assert gemma["encoder"] == gemma["decoder"] == {"num_hidden_layers": 4}


def entry(method: str, layers: int) -> dict[str, float | None]:
    """Of T5-base on a v5e: a layer takes 3 ms under PiD and 30 ms under PiE."""
    cycles = layers * 1.5e9 * (3e-3 if method == "pid" else 30e-3)
    memory = layers * 2**30 * (1 if method == "pid" else 2)
    return program(cycles=cycles, flops=1e12, temporary_bytes=memory, needed_bytes=memory)


def entries() -> dict[str, Any]:
    return {
        Case("t5-base", "v5e", "train", method, 8, layers).key: entry(method, layers)
        for method in ("pid", "pie")
        for layers in (1, 2)
    }


def test_a_line_of_the_table_has_time_ratio_flops_and_memory() -> None:
    (row,) = pid_against_pie.rows(entries(), "training")
    lines = estimates.table([row]).splitlines()
    # 12 layers: 36 ms and 360 ms; 12 GiB of 16, and 24 GiB.
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells[:6] == ["t5-base", "v5e", "8", "36.0 ms", "360.0 ms", "10.0×"]
    assert cells[6:] == ["1.00", "1.00", "12.00 GiB", "does not fit, needs 24 GiB"]
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


def test_no_line_is_made_of_missing_entries() -> None:
    assert pid_against_pie.rows({}, "training") == []
    some = dict(list(entries().items())[:2])
    (row,) = pid_against_pie.rows(some, "training")
    assert row["pie"] is None
    assert row["ratio"] is None
    assert "| – |" in estimates.table([row])


def test_a_whole_model_shows_how_far_the_line_deviates() -> None:
    whole = entry("pid", 12) | {"cycles": 40e-3 * 1.5e9}
    compiled = {**entries(), Case("t5-base", "v5e", "train", "pid", 8, 12).key: whole}
    (one,) = pid_against_pie.deviations(compiled)
    assert one["seconds"] == pytest.approx(36 / 40 - 1)
    assert one["temporary_bytes"] == 0


@pytest.fixture
def compiler(monkeypatch) -> list[str]:
    """A compiler that takes no time. The list has what it compiled."""
    compiled: list[str] = []

    def compile_case(case: Case) -> dict[str, float | None]:
        if len(compiled) == 3 and case.method == "pie":
            raise KeyboardInterrupt
        compiled.append(case.key)
        return entry(case.method, case.layers)

    monkeypatch.setattr(pid_against_pie, "compiled", compile_case)
    monkeypatch.setattr(pid_against_pie.targets, "prepare_environment", lambda: None)
    return compiled


ARGUMENTS = ["--models", "t5-base", "--targets", "h100", "--workloads", "training"]


def test_a_second_run_compiles_what_the_first_did_not(tmp_path, compiler, capsys) -> None:
    arguments = [*ARGUMENTS, "--prompts", "4", f"--output={tmp_path}"]
    with pytest.raises(KeyboardInterrupt):
        pid_against_pie.main(arguments)
    assert len(compiler) == 3
    compiler.append("")
    assert pid_against_pie.main(arguments) == 0
    assert len(compiler) == 3 + 1 + 1
    result = json.loads((tmp_path / "pid_against_pie.json").read_text())
    assert len(result["entries"]) == 4
    assert result["training"][0]["prompts"] == 4
    assert "accelerator" in result["note"]
    assert "| t5-base | h100 | 4 |" in capsys.readouterr().out
    compiler.clear()
    assert pid_against_pie.main(arguments) == 0
    assert compiler == []


def test_entries_of_another_commit_are_named_and_compiled_again_if_asked(
    tmp_path, compiler, monkeypatch
) -> None:
    arguments = [*ARGUMENTS, "--prompts", "4", f"--output={tmp_path}"]
    origins = {"commit": "first", "jax": "0.1"}
    monkeypatch.setattr(pid_against_pie, "origin", lambda: dict(origins))
    with pytest.raises(KeyboardInterrupt):
        pid_against_pie.main(arguments)
    origins["commit"] = "second"
    compiler.append("")
    pid_against_pie.main(arguments)
    result = json.loads((tmp_path / "pid_against_pie.json").read_text())
    assert result["commits"] == {"first": 3, "second": 1}
    assert result["jax"] == {"0.1": 4}
    assert all(entry["date"] for entry in result["entries"].values())
    compiler[:] = [""] * 4
    pid_against_pie.main([*arguments, "--stale"])
    assert len(compiler) == 4 + 3
    result = json.loads((tmp_path / "pid_against_pie.json").read_text())
    assert result["commits"] == {"second": 4}


def test_the_table_alone_compiles_nothing(tmp_path, compiler, capsys) -> None:
    assert pid_against_pie.main([*ARGUMENTS, "--table", f"--output={tmp_path}"]) == 0
    assert compiler == []
    assert "| model | target |" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_one_device_cannot_train_has_eight() -> None:
    assert pid_against_pie.target_of("t5-base", "v5e", "training") == "v5e"
    assert pid_against_pie.target_of("t5gemma-2b-2b", "v5e", "training") == "v5e:2x4"
    assert pid_against_pie.target_of("t5gemma-2b-2b", "v5e", "decoding") == "v5e"


@pytest.mark.parametrize("program", ["train", "prefill"])
def test_both_methods_have_the_same_pairs_and_encode_512_tokens(program: str) -> None:
    pid, pie = (
        pid_against_pie.request(Case("t5-base", "v5e", program, method, 64, 2)).arranged
        for method in ("pid", "pie")
    )
    assert (pid.documents, pid.prompts) == (8, 64)
    assert (pie.documents, pie.prompts) == (512, 1)
    assert pid.document_tokens == pie.document_tokens == 512
    assert (pid.prompt_tokens, pie.prompt_tokens) == (9, 1)
    assert pid.target_tokens == pie.target_tokens == 16


def test_training_has_the_optimizer_and_the_mesh_of_the_plan() -> None:
    made = pid_against_pie.request(Case("t5gemma-2b-2b", "v5e:2x4", "train", "pid", 8, 2))
    assert made.training.optimizer.name == "adafactor"
    assert made.training.train.remat == "none"
    assert dict(made.mesh) == {"data": 1, "fsdp": -1, "tensor": 1}


def test_the_committed_table_follows_from_its_entries() -> None:
    result = pid_against_pie.read(pid_against_pie.DIRECTORY)
    assert result["entries"]
    for workload in pid_against_pie.PROGRAMS:
        assert result[workload] == pid_against_pie.rows(result["entries"], workload)
    assert result["deviations"] == pid_against_pie.deviations(result["entries"])
    assert all(abs(one["seconds"]) < 0.1 for one in result["deviations"])


def test_the_page_has_the_committed_table() -> None:
    page = Path("docs/benchmarks.md").read_text(encoding="utf-8")
    entries = pid_against_pie.read(pid_against_pie.DIRECTORY)["entries"]
    for workload in pid_against_pie.PROGRAMS:
        assert estimates.table(pid_against_pie.rows(entries, workload)) in page

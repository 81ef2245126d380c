"""Sums over a compiled program, from a text written by hand."""

import pytest

from pid_jax import device_memory
from pid_jax.chips import CHIPS
from pid_jax.compile_ahead import estimate
from pid_jax.compile_ahead.estimate import ProgramEstimate, Work
from pid_jax.compile_ahead.timing import timing
from pid_jax.device_memory import Memory
from tests.compile_ahead.test_hlo import TEXT

MEMORY = Memory(arguments=1000, outputs=300, aliased=200, temporaries=50)


def read(decodes: bool) -> ProgramEstimate:
    return estimate.of_text(TEXT, name="decode", memory=MEMORY, flops=10, decodes=decodes)


def test_of_a_program_that_decodes_one_step_counts() -> None:
    step = read(decodes=True)
    assert step.parts == {
        "self-attention": Work(1, 700, 128),
        "head": Work(1, 50, 20),
    }
    assert step.work == Work(2, 750, 148)
    assert step.kinds == {"fusion": 2}


def test_copies_around_the_loop_are_listed_beside_it() -> None:
    step = read(decodes=True)
    # The copy of the cache, and a fusion that only transposes 8 x 4 values in float32.
    assert estimate.copies_outside(step) == Work(2, 900, 512 + 256)


def test_of_another_program_all_of_it_counts() -> None:
    whole = read(decodes=False)
    assert whole.outside is None
    assert whole.work.kernels == 2 + 2 + 12 + 6
    assert whole.work.cycles == 700 + 50 + 900
    assert whole.kinds["__cublas$lt$matmul"] == 12


def test_a_kernel_without_a_name_belongs_to_what_reads_it() -> None:
    text = """\
HloModule jit_decode

%concatenated (a.1: f32[4,8], b.1: f32[4,8]) -> f32[8,8] {
  %a.1 = f32[4,8]{1,0} parameter(0)
  %b.1 = f32[4,8]{1,0} parameter(1)
  ROOT %both.1 = f32[8,8]{1,0} concatenate(%a.1, %b.1), dimensions={0}
}

ENTRY %main (a: f32[4,8], b: f32[4,8]) -> f32[8,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[4,8]{1,0} parameter(1)
  %both = f32[8,8]{1,0} fusion(%a, %b), kind=kLoop, calls=%concatenated
  %view = f32[8,8]{1,0} bitcast(%both)
  ROOT %out = f32[8,8]{1,0} dot(%view, %view), metadata={op_name="jit(f)/feed_forward/dot"}
}
"""
    read = estimate.of_text(text, name="decode", memory=MEMORY, flops=0, decodes=False)
    assert read.parts == {"feed-forward": Work(2, 0, 2 * 256 + 3 * 256)}


def test_donated_arguments_are_not_counted_twice() -> None:
    assert MEMORY.total == 1000 + 300 - 200 + 50


def test_programs_in_sequence_add_their_work_and_share_the_memory() -> None:
    one = read(decodes=False)
    both = estimate.merged([one, one])
    assert both.work == one.work + one.work
    assert both.flops == 20
    assert both.memory == MEMORY


def test_collectives_are_counted_by_kind_with_the_bytes_of_their_results() -> None:
    text = """\
HloModule jit_train_step

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %sum = f32[4,8]{1,0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add
  %start = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%sum), dimensions={0}
  %done = f32[8,8]{1,0} all-gather-done(%start)
  ROOT %out = f32[4,8]{1,0} all-reduce(%sum), replica_groups={{0,1}}, to_apply=%add
}
"""
    read = estimate.of_text(text, name="train", memory=MEMORY, flops=0, decodes=False)
    assert read.collectives == {
        "all-reduce": Work(2, 0, 2 * 128),
        "all-gather": Work(1, 0, 256),
    }
    assert read.parts["collectives"].kernels == 3


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
            "memory required for HLO temporaries (30.50G) exceeds available HBM (15.75G).",
            (32_749_125_632, 16_911_433_728),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 256.00M "
            "hbm. Exceeded hbm capacity by 256.00M.",
            (512 << 20, 256 << 20),
        ),
        ("RESOURCE_EXHAUSTED: something else", (0, 0)),
        ("INTERNAL: a bug", None),
    ],
)
def test_a_refusal_says_what_a_program_needs(message: str, sizes: tuple[int, int] | None) -> None:
    assert device_memory.out_of_memory(message) == sizes


def test_time_on_a_tpu_is_that_of_its_cycles() -> None:
    program = ProgramEstimate("decode", {"head": Work(3, 3_000_000, 819)}, None, {}, {}, MEMORY, 0)
    times = timing(program, CHIPS["v5e"], devices=1)
    assert times.seconds == pytest.approx(2e-3)  # 3 M cycles at 1.5 GHz
    assert times.memory == pytest.approx(1e-9)  # 819 bytes at 819 GB/s
    assert times.kernels is None


def test_time_on_a_gpu_is_that_of_the_tightest_limit() -> None:
    few = ProgramEstimate("train", {"head": Work(4, 0, 0)}, None, {}, {}, MEMORY, int(989e9 * 8))
    times = timing(few, CHIPS["h100"], devices=8)
    assert times.products == pytest.approx(1e-3)  # 989 GFLOP on each device at 989 TFLOP/s
    assert times.seconds == pytest.approx(1e-3)
    assert times.share_of_peak == pytest.approx(1.0)
    many = ProgramEstimate("decode", {"head": Work(400, 0, 0)}, None, {}, {}, MEMORY, 0)
    assert timing(many, CHIPS["h100"], devices=1).seconds == pytest.approx(1e-3)  # at 2.5 us


def test_pallas_kernels_have_the_cycles_of_their_own_cost() -> None:
    text = """\
HloModule jit_encode

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %out = bf16[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"1970000000",\
"transcendentals":"1024000","bytes_accessed":"64"}}}
}
"""

    def cycles(chip: str | None) -> int:
        read = estimate.of_text(
            text,
            name="encode",
            memory=MEMORY,
            flops=0,
            decodes=False,
            chip=None if chip is None else CHIPS[chip],
        )
        return read.work.cycles

    # 1.97 GFLOP take 10 us of 197 TFLOP/s, 20 us at half of it: 30,000 cycles at 1.5 GHz.
    assert cycles("v5e") == 30_000 + 2_500
    assert cycles("h100") == cycles(None) == 0

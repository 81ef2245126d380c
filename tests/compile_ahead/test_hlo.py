"""The text of compiled programs, read from texts written by hand."""

# ruff: noqa: E501  (instructions are lines, whatever their length)

import pytest

from pid_jax.compile_ahead import hlo
from pid_jax.compile_ahead.hlo import Array
from pid_jax.compile_ahead.traffic import Traffic

TEXT = """\
HloModule jit_decode, is_scheduled=true

%fused_slice (param_0: bf16[4,8,8], param_1: s32[]) -> bf16[1,8,8] {
  %param_0 = bf16[4,8,8]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %one = bf16[1,8,8]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,8,8}
}

%fused_update (param_0.2: bf16[16,8], param_1.2: bf16[1,8], param_2: s32[]) -> bf16[16,8] {
  %param_1.2 = bf16[1,8]{1,0} parameter(1)
  %param_0.2 = bf16[16,8]{1,0} parameter(0)
  %param_2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  ROOT %update = bf16[16,8]{1,0} dynamic-update-slice(%param_0.2, %param_1.2, %param_2, %zero.2)
}

%fused_transpose (param_0.3: f32[8,4]) -> f32[4,8] {
  %param_0.3 = f32[8,4]{1,0} parameter(0)
  ROOT %moved = f32[4,8]{1,0} transpose(%param_0.3), dimensions={1,0}
}

%body (state: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %state = (s32[], bf16[16,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %cache = bf16[16,8]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %row = bf16[1,8]{1,0:T(8,128)(2,1)S(1)} fusion(%cache), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(decode)/while/body/vmap(T5.decode)/decoder/layers_0/self_attention/dot_general"}, backend_config={"window_config":{"estimated_cycles":"700"}}
  %new = bf16[16,8]{1,0} fusion(%cache, %row, %step), kind=kLoop, calls=%fused_update, metadata={op_name="jit(decode)/while/body/T5.logits/dot_general"}, backend_config={"window_config":{"estimated_cycles":"50"}}
  %next = s32[] add(%step, %step), backend_config={"window_config":{"estimated_cycles":"3"}}
  ROOT %result = (s32[], bf16[16,8]{1,0}) tuple(%next, %new)
}

%scan_body (inner: (f32[8,8])) -> (f32[8,8]) {
  %inner = (f32[8,8]{1,0}) parameter(0)
  %value = f32[8,8]{1,0} get-tuple-element(%inner), index=0
  %product = (f32[8,8]{1,0}, s8[4194304]{0}) custom-call(%value, %value), custom_call_target="__cublas$lt$matmul", metadata={op_name="a['b']/dot_general"}
  %first = f32[8,8]{1,0} get-tuple-element(%product), index=0
  ROOT %out = (f32[8,8]{1,0}) tuple(%first)
}

%condition (x: (s32[])) -> pred[] {
  %x = (s32[]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%less (y: (s32[], f32[8,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  %y = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%y), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%counted_body (z: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %z = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) parameter(0)
  %before = f32[8,8]{1,0:T(8,128)} get-tuple-element(%z), index=1
  %counter.2 = s32[]{:T(128)} get-tuple-element(%z), index=0
  %doubled = f32[8,8]{1,0:T(8,128)} add(%before, %before)
  ROOT %after = (s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}) tuple(%counter.2, %doubled)
}

ENTRY %main (a: bf16[16,8], b: f32[8,4]) -> bf16[16,8] {
  %a = bf16[16,8]{1,0} parameter(0), metadata={op_name="state.cache[\\'key\\']"}
  %b = f32[8,4]{1,0} parameter(1)
  %zero.4 = s32[] constant(0)
  %turned = f32[4,8]{1,0} fusion(%b), kind=kLoop, calls=%fused_transpose
  %laid = bf16[16,8]{0,1} copy(%a), backend_config={"window_config":{"estimated_cycles":"900"}}
  %pair = (s32[], f32[8,8]{1,0:T(8,128)}) tuple(%zero.4, %b)
  %counted = (s32[], f32[8,8]{1,0:T(8,128)}) while(%pair), condition=%less, body=%counted_body
  %start = (s32[], /*index=1*/bf16[16,8]{0,1}) tuple(%zero.4, %laid)
  %loop = (s32[], bf16[16,8]{1,0}) while(%start), condition=%condition, body=%body
  %scanned = (f32[8,8]{1,0}) while(%start), condition=%condition, body=%scan_body, backend_config={"known_trip_count":{"n":"12"}}
  ROOT %end = bf16[16,8]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def program() -> hlo.Program:
    return hlo.parse(TEXT)


def by_name(program: hlo.Program) -> dict[str, hlo.Instruction]:
    return {one.name: one for body in program.computations.values() for one in body}


def test_every_computation_is_read(program: hlo.Program) -> None:
    assert program.entry == "main"
    assert {name: len(body) for name, body in program.computations.items()} == {
        "fused_slice": 4,
        "fused_update": 5,
        "fused_transpose": 2,
        "body": 7,
        "scan_body": 5,
        "condition": 2,
        "less": 4,
        "counted_body": 5,
        "main": 11,
    }


def test_an_instruction_has_its_shape_operands_calls_and_cycles(program: hlo.Program) -> None:
    row = by_name(program)["row"]
    assert row.opcode == "fusion"
    assert row.arrays == (Array("bf16", (1, 8), in_main_memory=False),)
    assert row.operands == ("cache",)
    assert row.called == ("fused_slice",)
    assert row.cycles == 700
    assert row.op_name.endswith("self_attention/dot_general")
    product = by_name(program)["product"]
    assert product.target == "__cublas$lt$matmul"
    assert product.arrays == (Array("f32", (8, 8)), Array("s8", (4194304,)))
    assert by_name(program)["param_1.2"].value == 1


def test_a_loop_counts_its_trips_and_an_unknown_number_as_one(program: hlo.Program) -> None:
    executed = {one.name: times for one, times in program.executed()}
    # Scalars, tuples and parameters are no kernels.
    # One loop says that it runs 12 times, one compares its counter with 6.
    assert executed == {
        **{"turned": 1, "laid": 1, "row": 1, "new": 1},
        **{"product": 12, "doubled": 6},
    }


def test_the_main_loop_is_the_one_with_most_cycles(program: hlo.Program) -> None:
    loop = program.main_loop()
    assert loop is not None
    assert loop.name == "loop"
    assert [one.name for one, _ in program.executed("body")] == ["row", "new"]
    outside = [one.name for one, _ in program.executed(skip="loop")]
    assert outside == ["turned", "laid", "doubled", "product"]


def test_a_program_without_loops_has_no_main_loop() -> None:
    text = "ENTRY %main (a: f32[2]) -> f32[2] {\n  ROOT %a = f32[2]{0} parameter(0)\n}\n"
    assert hlo.parse(text).main_loop() is None


def test_a_text_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("module @jit_f {\n}\n")


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (Array("bf16", (3, 5)), 30),
        (Array("pred", (7,)), 7),
        (Array("s4", (3,)), 2),
        (Array("f8e4m3fn", (9,)), 9),
        (Array("f32", ()), 4),
        (Array("token", ()), 0),
    ],
)
def test_bytes_of_an_array(array: Array, size: int) -> None:
    assert array.bytes == size


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # 16 x 8 in bfloat16, read and written.
        ("laid", 2 * 256),
        # Reads the one slice of 8 x 8 that the fusion takes. Its result is not in main memory.
        ("row", 128),
        # Writes one row of 8, reads the counter. The new row is not in main memory.
        ("new", 16 + 4),
        # Reads 8 x 8 twice and writes it in float32. cuBLAS's scratch memory does not count.
        ("product", 3 * 256),
    ],
)
def test_bytes_that_a_kernel_moves(program: hlo.Program, name: str, size: int) -> None:
    assert Traffic(program).of(by_name(program)[name]) == size


TRANSFERS = """\
HloModule jit_decode, is_scheduled=true

ENTRY %main (a: bf16[16,8], i: s32[]) -> bf16[16,8] {
  %a = bf16[16,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %part = ((bf16[16,8]{1,0}), bf16[4,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:4], [0:8]}
  %own = ((bf16[16,8]{1,0}, s32[], s32[]), bf16[2,8]{1,0:S(1)}, s32[]{:S(2)}) dynamic-slice-start(%a, %i, %i), dynamic_slice_sizes={2,8}
  %in = (bf16[16,8]{1,0:S(1)}, bf16[16,8]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %inside = bf16[16,8]{1,0:S(1)} copy-done(%in)
  %out = (bf16[16,8]{1,0}, bf16[16,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%inside)
  %moved = (bf16[16,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) copy-start(%a)
  ROOT %done = bf16[16,8]{1,0} copy-done(%out)
}
"""


@pytest.mark.parametrize(
    ("name", "size"),
    [("part", 4 * 16), ("own", 2 * 16), ("in", 256), ("out", 256), ("moved", 2 * 256)],
)
def test_a_transfer_moves_the_bytes_of_its_slice_and_only_main_memory_counts(
    name: str, size: int
) -> None:
    program = hlo.parse(TRANSFERS)
    assert Traffic(program).of(by_name(program)[name]) == size

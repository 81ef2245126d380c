"""What the compiler made of one program: kernels, cycles, bytes, memory, collectives."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from pid_jax import device_memory
from pid_jax.chips import CYCLES_PER_EXPONENTIAL, KERNEL_SHARE_OF_PEAK, Chip
from pid_jax.compile_ahead import hlo
from pid_jax.compile_ahead.parts import COLLECTIVE, COPIES, PARTS, part_of
from pid_jax.compile_ahead.traffic import Traffic
from pid_jax.device_memory import Memory


@dataclass(frozen=True)
class Work:
    """Sums over kernels."""

    kernels: int = 0
    cycles: int = 0
    """The TPU compiler's estimate, and `pallas_cycles`. 0 for a GPU."""
    bytes: int = 0
    """Read from and written to the main memory."""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.kernels + other.kernels, self.cycles + other.cycles, self.bytes + other.bytes
        )


@dataclass(frozen=True)
class ProgramEstimate:
    """One compiled program. Of a program that decodes, one decode step: the body of its loop."""

    name: str
    parts: Mapping[str, Work]
    """By the names in `parts.PARTS`."""
    outside: Mapping[str, Work] | None
    """What runs once, before and after the loop of a program that decodes, by the same names."""
    kinds: Mapping[str, int]
    """Kernels by opcode, or by target for library calls."""
    collectives: Mapping[str, Work]
    """By kind, on one device. The bytes are those of the results."""
    memory: Memory
    flops: int
    """Over all devices."""
    unreadable: str = ""
    """Why the program has no parts: its text cannot be printed. Memory and FLOPs are there."""

    @property
    def work(self) -> Work:
        return total(self.parts.values())


def total(works: Iterable[Work]) -> Work:
    """The sum of all."""
    return sum(works, Work())


def pallas_cycles(instruction: hlo.Instruction, chip: Chip) -> int:
    """An estimate for a Pallas kernel of a TPU, for which the compiler gives none.

    From the FLOPs, exponentials and bytes that the kernel says of itself. 0 for other instructions.
    """
    flops, exponentials, moved = instruction.cost
    if chip.clock_hertz is None:
        return 0
    seconds = flops / (KERNEL_SHARE_OF_PEAK * chip.flops_per_second)
    cycles = seconds * chip.clock_hertz + exponentials * CYCLES_PER_EXPONENTIAL
    return int(max(cycles, moved / chip.bytes_per_second * chip.clock_hertz))


def of_text(
    text: str,
    *,
    name: str,
    memory: Memory,
    flops: int,
    decodes: bool,
    chip: Chip | None = None,
) -> ProgramEstimate:
    """Reads the text of a compiled program.

    decodes: whether its main loop is that of decode steps. Then one iteration counts. chip: for the
    cycles of Pallas kernels, which do not count without it.
    """
    program = hlo.parse(text)
    if chip is not None:
        program = program.with_cycles(functools.partial(pallas_cycles, chip=chip))
    traffic = Traffic(program)
    loop = program.main_loop() if decodes else None
    step = None if loop is None else loop.called[0]
    parts, outside = _by_part(program, traffic, step), None
    if loop is not None:
        outside = _by_part(program, traffic, None, skip=loop.name)
    kinds: Counter[str] = Counter()
    collectives: dict[str, Work] = {}
    for one, times in program.executed(step):
        kinds[one.target or one.opcode] += times
        match = COLLECTIVE.match(one.opcode)
        if match:
            moved = sum(array.bytes for array in one.arrays[-1:])
            collectives[match[1]] = collectives.get(match[1], Work()) + Work(
                times, times * one.cycles, times * moved
            )
    return ProgramEstimate(
        name, parts, outside, dict(kinds.most_common()), collectives, memory, flops
    )


def of_compiled(
    compiled: Any, *, name: str, flops: int, decodes: bool, chip: Chip | None = None
) -> ProgramEstimate:
    """Reads a `jax.stages.Compiled`.

    Some programs for large TPU meshes have instructions that jaxlib cannot print: libtpu is newer.
    """
    memory = device_memory.of_program(compiled)
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        why = str(error).splitlines()[0]
        return ProgramEstimate(name, {}, None, {}, {}, memory, flops, unreadable=why)
    return of_text(text, name=name, memory=memory, flops=flops, decodes=decodes, chip=chip)


def merged(estimates: Iterable[ProgramEstimate]) -> ProgramEstimate:
    """Programs that run one after the other. Memory is that of the one with most."""
    first, *others = estimates
    for other in others:
        both = (first, other)
        first = dataclasses.replace(
            first,
            name=f"{first.name}, {other.name}",
            parts=_in_order(_merged([one.parts for one in both])),
            kinds=dict((Counter(first.kinds) + Counter(other.kinds)).most_common()),
            collectives=_merged([one.collectives for one in both]),
            memory=max(first.memory, other.memory, key=lambda memory: memory.total),
            flops=first.flops + other.flops,
            unreadable=first.unreadable or other.unreadable,
        )
    return first


def copies_outside(estimate: ProgramEstimate) -> Work:
    """Copies around the loop of decode steps: such as those that change the cache's layout."""
    return (estimate.outside or {}).get(COPIES, Work())


def _by_part(
    program: hlo.Program, traffic: Traffic, computation: str | None, skip: str | None = None
) -> dict[str, Work]:
    works: dict[str, Work] = {}
    users = program.users()
    for one, times in program.executed(computation, skip=skip):
        part = part_of(one, program, users)
        kernels = 0 if one.is_transfer else times
        work = Work(kernels, times * one.cycles, times * traffic.of(one))
        works[part] = works.get(part, Work()) + work
    return _in_order(works)


def _in_order(works: Mapping[str, Work]) -> dict[str, Work]:
    return {part: works[part] for part in PARTS if part in works}


def _merged(rows: Iterable[Mapping[str, Work]]) -> dict[str, Work]:
    works: dict[str, Work] = {}
    for row in rows:
        for name, work in row.items():
            works[name] = works.get(name, Work()) + work
    return works

"""The text of a compiled program (optimised HLO, https://openxla.org/xla) as data."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_NAME = r"%?([\w.\-]+)"
_HEADER = re.compile(rf"^(ENTRY )?{_NAME} .*\{{$")
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?{_NAME} = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation|branch_computations)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_DIRECTION = re.compile(r"\bdirection=(\w+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_COST = re.compile(
    r'"cost_estimate":\{"flops":"?(\d+)"?,"transcendentals":"?(\d+)"?,"bytes_accessed":"?(\d+)'
)
_IN_VECTOR_MEMORY = re.compile(r"S\([1-9]\d*\)")

_NO_KERNEL = frozenset(
    {
        "add-dependency",
        "after-all",
        "bitcast",
        "constant",
        "domain",
        "get-tuple-element",
        "iota",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
    }
)
_CALLING = frozenset({"call", "conditional", "while", "async-start"})
_NO_KERNEL_TARGETS = frozenset({"AllocateBuffer", "ConcatBitcast", "Sharding"})
_TRANSFERS = frozenset({"copy-start", "dynamic-slice-start", "slice-start"})


@dataclass(frozen=True)
class Array:
    """The shape of one array in the program."""

    dtype: str
    dimensions: tuple[int, ...]
    in_main_memory: bool = True
    """False in a TPU's vector memory (memory space 1) or another one on the chip."""

    @property
    def bytes(self) -> int:
        """Without the padding of its layout."""
        return math.ceil(math.prod(self.dimensions) * _bits(self.dtype) / 8)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """Of the result, flattened."""
    operands: tuple[str, ...]
    op_name: str
    """Where the program's source made it: `jit(f)/module/primitive`."""
    called: tuple[str, ...]
    """Names of computations: a loop's body, branches, the insides of a fusion."""
    cycles: int = 0
    """The TPU compiler's estimate. 0 where there is none."""
    trip_count: int | None = None
    """Of a loop, where the compiler knows it."""
    target: str = ""
    """Of a custom call."""
    cost: tuple[int, int, int] = (0, 0, 0)
    """What a Pallas kernel says of itself: FLOPs, exponentials, bytes."""
    value: int | None = None
    """The number of a parameter, the value of a scalar integer constant."""
    condition: str = ""
    """Name of the computation that ends a loop."""
    direction: str = ""
    """Of a comparison: LT for "less than"."""

    @property
    def is_transfer(self) -> bool:
        """Whether it moves data between memories while kernels run, as TPU programs prefetch."""
        return self.opcode in _TRANSFERS

    @property
    def is_kernel(self) -> bool:
        """Whether the device runs it as a kernel or a transfer of its own."""
        if self.opcode in _NO_KERNEL or self.opcode.endswith(("-done", "-update")):
            return False
        if self.opcode in _CALLING or self.target in _NO_KERNEL_TARGETS:
            return False
        # TPU programs have arithmetic on scalars outside of fusions, by the scalar unit.
        scalar = all(not array.dimensions for array in self.arrays)
        return self.opcode in ("fusion", "custom-call") or not scalar


@dataclass(frozen=True)
class Program:
    """A compiled program."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    """The name of the computation that runs first."""

    def with_cycles(self, further: Callable[[Instruction], int]) -> "Program":
        """The program with further cycles of its instructions."""
        changed = {
            name: tuple(
                dataclasses.replace(one, cycles=one.cycles + further(one)) for one in instructions
            )
            for name, instructions in self.computations.items()
        }
        return dataclasses.replace(self, computations=changed)

    def executed(
        self, computation: str | None = None, times: int = 1, skip: str | None = None
    ) -> Iterator[tuple[Instruction, int]]:
        """The kernels and transfers of a computation, loops and calls included.

        Each comes with the number of times that it runs.

        computation: None for the entry. A loop without a known trip count counts one iteration.
        Of a conditional's branches the one with most cycles counts, or with most kernels. skip:
        the name of a loop that is left out.
        """
        for instruction in self.computations[computation or self.entry]:
            if instruction.name == skip:
                continue
            if instruction.opcode in _CALLING:
                is_loop = instruction.opcode == "while"
                trips = (self.trips(instruction) or 1) if is_loop else 1
                called = instruction.called
                if instruction.opcode == "conditional":
                    called = (max(called, key=self._weight),)
                for name in called:
                    yield from self.executed(name, times * trips, skip)
            elif instruction.is_kernel:
                yield instruction, times

    def users(self) -> dict[str, Instruction]:
        """For the name of each instruction, the first one that reads its result."""
        result: dict[str, Instruction] = {}
        for body in self.computations.values():
            for one in body:
                for name in one.operands:
                    result.setdefault(name, one)
        return result

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop runs. None if the program does not say.

        The compiler for GPUs writes it down. Elsewhere a condition "counter < constant" tells, as
        `jax.lax.scan` has it: the counter starts at 0.
        """
        if loop.trip_count is not None:
            return loop.trip_count
        body = self.computations.get(loop.condition, ())
        if not body or body[-1].opcode != "compare" or body[-1].direction != "LT":
            return None
        by_name = {one.name: one for one in body}
        counter, limit = (by_name.get(name) for name in body[-1].operands)
        if counter is None or counter.opcode != "get-tuple-element":
            return None
        return limit.value if limit is not None and limit.opcode == "constant" else None

    def main_loop(self) -> Instruction | None:
        """The loop whose body has most cycles, or most kernels. None for a program without loops.

        Loops inside of a loop's body do not count.
        """
        loops = list(self._loops(self.entry))
        return max(loops, key=lambda loop: self._weight(loop.called[0]), default=None)

    def _loops(self, computation: str) -> Iterator[Instruction]:
        for instruction in self.computations[computation]:
            if instruction.opcode == "while":
                yield instruction
            elif instruction.opcode in _CALLING:
                for name in instruction.called:
                    yield from self._loops(name)

    def _weight(self, computation: str) -> tuple[int, int]:
        cycles = kernels = 0
        for instruction, times in self.executed(computation):
            cycles += times * instruction.cycles
            kernels += times
        return cycles, kernels


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`. Raises ValueError for a text without an entry computation."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name = "", ""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith(" "):
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                name, lines = header[2], []
                entry = name if header[1] else entry
            elif line.startswith("}") and name:
                computations[name] = tuple(filter(None, map(_instruction, lines)))
                name = ""
        elif name:
            lines.append(line)
    if entry not in computations:
        raise ValueError("the text has no ENTRY computation: is it optimised HLO?")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if start is None:
        return None
    shape, rest = _split_shape(line[start.end() :])
    opcode, _, rest = rest.partition("(")
    end = _closing(rest)
    operands, attributes = rest[:end], rest[end:]
    called = tuple(
        name for match in _CALLED.finditer(attributes) for name in _OPERAND.findall(match[1])
    )
    return Instruction(
        name=start[1],
        opcode=opcode.strip(),
        arrays=_arrays(shape),
        operands=tuple(_OPERAND.findall(operands)),
        op_name=_first(_OP_NAME, attributes, str) or "",
        called=called,
        cycles=_first(_CYCLES, attributes, int) or 0,
        trip_count=_first(_TRIPS, attributes, int),
        target=_first(_TARGET, attributes, str) or "",
        cost=_cost(attributes),
        value=int(operands) if re.fullmatch(r"-?\d+", operands) else None,
        condition=_first(_CONDITION, attributes, str) or "",
        direction=_first(_DIRECTION, attributes, str) or "",
    )


def _cost(attributes: str) -> tuple[int, int, int]:
    match = _COST.search(attributes)
    return (0, 0, 0) if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _first(pattern: re.Pattern[str], text: str, kind: Callable[[str], T]) -> T | None:
    match = pattern.search(text)
    return None if match is None else kind(match[1])


def _split_shape(text: str) -> tuple[str, str]:
    """The shape of a result and what follows it."""
    if text.startswith("("):
        end = _closing(text[1:]) + 2
        return text[:end], text[end:].lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closing(text: str) -> int:
    """The index of the parenthesis that closes one before the text."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


@functools.lru_cache(maxsize=4096)
def _arrays(shape: str) -> tuple[Array, ...]:
    return tuple(
        Array(
            match[1],
            tuple(int(size) for size in match[2].split(",") if size),
            not _IN_VECTOR_MEMORY.search(match[3] or ""),
        )
        for match in _ARRAY.finditer(shape)
    )


@functools.cache
def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    if dtype == "token":
        return 0
    width = re.search(r"\d+", dtype)
    return int(width[0]) if width else 0

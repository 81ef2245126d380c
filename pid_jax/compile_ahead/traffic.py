"""Bytes that instructions read from and write to the device's main memory.

Counted from shapes, without the padding of layouts. A slice or gather reads what it returns, and a
`dynamic-update-slice` writes its update. Arrays in a TPU's vector memory count nothing.
"""

from collections.abc import Iterable, Mapping

from pid_jax.compile_ahead.hlo import Array, Instruction, Program

_SLICES = frozenset({"dynamic-slice", "gather", "slice"})
_VIEWS = frozenset({"bitcast", "reshape"})
_WORKSPACE = frozenset({"s8", "u8"})


class Traffic:
    """The bytes of each instruction of one program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._arrays: Mapping[str, tuple[Array, ...]] = {
            one.name: one.arrays for body in program.computations.values() for one in body
        }
        self._fusions: dict[str, tuple[dict[int, int], int | None]] = {}

    def of(self, instruction: Instruction) -> int:
        """Bytes read and written by one run of a kernel."""
        if instruction.is_transfer:
            return self._transfer(instruction)
        if instruction.opcode.endswith("-start"):
            # The result of an asynchronous collective has its operands, too.
            return sum(map(self._size, instruction.operands))
        written = _bytes(_without_workspace(instruction))
        sliced: Mapping[int, int] = {}
        if instruction.opcode == "fusion" and instruction.called:
            sliced, update = self._fusion(instruction.called[0])
            written = written if update is None else min(update, written)
        elif instruction.opcode in _SLICES:
            sliced = {0: written}
        elif instruction.opcode == "dynamic-update-slice":
            written = self._size(instruction.operands[1])
            sliced = {0: 0}
        read = sum(
            min(sliced[index], self._size(name)) if index in sliced else self._size(name)
            for index, name in enumerate(instruction.operands)
        )
        return read + written

    def _transfer(self, instruction: Instruction) -> int:
        """Bytes read and written between memories, of which a slice moves only its own."""
        operands = instruction.operands
        # The result of copy-start is (destination, source, context), that of the others
        # ((operands), destination, context).
        index = 0 if instruction.opcode == "copy-start" else len(operands)
        moved = instruction.arrays[index]
        read = min(moved.bytes, self._size(operands[0]))
        return read + (moved.bytes if moved.in_main_memory else 0)

    def _size(self, name: str) -> int:
        return _bytes(self._arrays.get(name, ()))

    def _fusion(self, computation: str) -> tuple[dict[int, int], int | None]:
        """Bytes read of the parameters that are only sliced, and those written by an update."""
        if computation not in self._fusions:
            self._fusions[computation] = self._read_fusion(computation)
        return self._fusions[computation]

    def _read_fusion(self, computation: str) -> tuple[dict[int, int], int | None]:
        body = self._program.computations.get(computation, ())
        users: dict[str, list[Instruction]] = {}
        for one in body:
            for name in one.operands:
                users.setdefault(name, []).append(one)
        parameters = [one for one in body if one.opcode == "parameter"]
        sliced = {}
        update: int | None = None
        for parameter in parameters:
            total, only_sliced, names = 0, True, [parameter.name]
            while names:
                name = names.pop()
                for user in users.get(name, []):
                    if user.opcode in _VIEWS:
                        names.append(user.name)
                    elif user.opcode in _SLICES and user.operands[0] == name:
                        total += _all_bytes(user.arrays)
                    elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                        update = (update or 0) + _all_bytes(self._arrays[user.operands[1]])
                    else:
                        only_sliced = False
            if only_sliced and parameter.value is not None:
                sliced[parameter.value] = total
        return sliced, update


def _without_workspace(instruction: Instruction) -> Iterable[Array]:
    """The results of a kernel. cuBLAS and cuDNN also return their scratch memory."""
    is_library = instruction.target.startswith("__cu")
    return (
        array
        for array in instruction.arrays
        if not (is_library and array.dtype in _WORKSPACE and len(array.dimensions) == 1)
    )


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if array.in_main_memory)


def _all_bytes(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays)

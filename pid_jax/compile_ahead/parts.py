"""The part of the model that an instruction belongs to, by the name of its source.

JAX writes the path of transformations and modules into every instruction's `op_name`:
`jit(decode)/while/body/vmap(T5.decode)/decoder/layers_3/cross_attention/dot_general`.
"""

import re
from collections.abc import Mapping

from pid_jax.compile_ahead.hlo import Instruction, Program

ENCODER_ATTENTION = "encoder attention"
FEED_FORWARD = "feed-forward"
CROSS_ATTENTION = "cross-attention"
SELF_ATTENTION = "self-attention"
HEAD = "head"
LOSS = "loss"
SELECTION = "token selection"
OPTIMIZER = "optimizer"
COPIES = "copies"
COLLECTIVES = "collectives"
PREFETCHES = "prefetches"
OTHER = "other"

PARTS = (
    ENCODER_ATTENTION,
    FEED_FORWARD,
    CROSS_ATTENTION,
    SELF_ATTENTION,
    HEAD,
    LOSS,
    SELECTION,
    OPTIMIZER,
    COPIES,
    COLLECTIVES,
    PREFETCHES,
    OTHER,
)
"""Every part, in the order of the table."""

COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|"
    r"ragged-all-to-all|reduce-scatter)(-start)?$"
)

_MOVES = frozenset(
    {"bitcast", "constant", "copy", "get-tuple-element", "parameter", "reshape", "transpose"}
    | {"tuple"}
)
_MOVES_SOMETHING = frozenset({"copy", "transpose"})

_MODULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"cross_attention"), CROSS_ATTENTION),
    (re.compile(r"encoder/.*(self_attention|relative_position_bias|attention_norm)"), "encoder"),
    (re.compile(r"encode\b.*(self_attention|attention)"), "encoder"),
    (re.compile(r"self_attention|merged_attention|relative_position_bias"), SELF_ATTENTION),
    (re.compile(r"feed_forward|\bmlp\b"), FEED_FORWARD),
    (re.compile(r"\blogits\b|lm_head|\.logits"), HEAD),
    (re.compile(r"\bloss\b|cross_entropy|log_probabilities"), LOSS),
)
_TRAINING = ("jit(train_step)", "jit(function)")
"""How names in the training step start."""
_INSIDE = re.compile(r"^(jit|pjit)\([^)]*\)/")
_MODEL = re.compile(r"/?(jvp|transpose|vmap|checkpoint|rematted_computation)\b|\.(encode|decode)\b")


def part_of(
    instruction: Instruction, program: Program, users: Mapping[str, Instruction] | None = None
) -> str:
    """The part of one kernel, from `PARTS`.

    users: `Program.users()`. XLA's own instructions have no name, such as a concatenation of two
    kernels. They belong to the part of the first instruction that reads them.
    """
    if COLLECTIVE.match(instruction.opcode):
        return COLLECTIVES
    if instruction.is_transfer:
        return PREFETCHES
    if _is_copy(instruction, program.computations):
        return COPIES
    named: Instruction | None = instruction
    while users is not None and named is not None and not named.op_name:
        named = users.get(named.name)
    return part_of_name(instruction.op_name if named is None else named.op_name)


def part_of_name(op_name: str) -> str:
    """The part that an `op_name` stands for. `OTHER` for an empty one."""
    path = op_name.partition(";")[0]
    for pattern, part in _MODULES:
        if pattern.search(path):
            return ENCODER_ATTENTION if part == "encoder" else part
    inside = _INSIDE.sub("", path)
    if not path:
        return OTHER
    if path.startswith(("jit(decode)", "jit(prefill)")) or "/while/body/" in path:
        return OTHER if _MODEL.search(inside) else SELECTION
    if inside.startswith(("jvp()", "transpose(jvp())")) and "threefry" not in path:
        return OTHER if path.endswith(("add_any", "convert_element_type")) else LOSS
    if _MODEL.search(inside) or "threefry" in path:
        return OTHER
    return OPTIMIZER if path.startswith(_TRAINING) else OTHER


def _is_copy(instruction: Instruction, computations: Mapping[str, tuple[Instruction, ...]]) -> bool:
    """Whether a kernel only moves data: a copy, a transpose, or a fusion of nothing else."""
    if instruction.opcode in _MOVES_SOMETHING:
        return True
    if instruction.opcode != "fusion" or not instruction.called:
        return False
    opcodes = {one.opcode for one in computations.get(instruction.called[0], ())}
    return opcodes <= _MOVES and bool(opcodes & _MOVES_SOMETHING)

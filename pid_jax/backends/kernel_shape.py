"""The sizes of a call of `attention_kernels.attention`, in a file that imports no Pallas."""

import dataclasses

from pid_jax.backends.scores import MASKED_SCORE

LANES = 128
"""The length of a TPU's vectors, and the side of its matrix unit."""

SUBLANES = 8
"""The number of vectors in a register."""

NO_KEY = 4 * MASKED_SCORE
"""The score of what pads the keys: such keys count for nothing even where all others are masked."""


@dataclasses.dataclass(frozen=True)
class KernelShape:
    """What is static in `attention`."""

    width: int
    """The width of a head, K. It divides `LANES` or is a multiple of it."""
    queries: int
    """The queries of a prompt in a block, a multiple of `SUBLANES` that divides L."""
    prompts: int = 1
    """The prompts of a block, a divisor of P. If there are several, a block has all queries."""
    scale: float = 1.0
    soft_cap: float | None = None
    reach: tuple[int, int] | None = None
    interpret: bool = False

    @property
    def rows(self) -> int:
        """The queries of a block."""
        return self.prompts * self.queries

    @property
    def lanes(self) -> int:
        """The numbers of W in a block."""
        return max(self.width, LANES)

    @property
    def heads(self) -> int:
        """The heads in a block."""
        return self.lanes // self.width

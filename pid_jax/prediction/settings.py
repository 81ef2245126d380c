"""What a prediction run reads, writes and generates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pid_jax.errors import UserError

STANDARD = Path("-")
"""Standard input or output instead of a file."""


@dataclass(frozen=True)
class Settings:
    """One prediction run."""

    checkpoint: str
    """What `PidModel.from_pretrained` loads."""
    input: Path
    output: Path
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `PidModel.generate` that determine the answers, "method" included."""
    dtype: str = "float32"
    """Of parameters and activations: "float32", "bfloat16" or "auto"."""
    weights: str | None = None
    """What `PidModel.from_pretrained` takes: None, or "int8" for weights in 8 bits."""
    mesh: Mapping[str, int] | None = None
    """What `PidModel.from_pretrained` takes: None, or the sizes of a mesh."""
    batch_tokens: int | None = None
    batch_size: int | None = None
    write_every: int = 512
    """Documents answered between two writes."""
    skip_bad_lines: bool = False
    """Reports a line that cannot be read and leaves it out, instead of stopping there."""
    restart: bool = False
    """Drops the answers of a stopped run."""

    def __post_init__(self) -> None:
        if self.output.suffix.lower() == ".gz":
            raise UserError(
                f"--output={self.output}: the output is written as plain text: leave .gz out"
            )
        for flag in ("write-every", "batch-tokens", "batch-size"):
            value = getattr(self, flag.replace("-", "_"))
            if value is not None and value < 1:
                raise UserError(f"--{flag} must be at least 1, not {value}")

    @property
    def method(self) -> Any:
        """The method, "pid" or "pie"."""
        return self.generation["method"]

    @property
    def batches(self) -> dict[str, Any]:
        """Arguments of `PidModel.generate` without an effect on the answers."""
        return {"batch_tokens": self.batch_tokens, "batch_size": self.batch_size}

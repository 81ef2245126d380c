"""What a prediction run did."""

from dataclasses import dataclass
from pathlib import Path

from pid_jax.decoding.report import DecodingReport
from pid_jax.prediction.answering import Counts


@dataclass(frozen=True)
class Summary:
    """Printed, it is the text that ends the command."""

    output: Path
    counts: Counts
    report: DecodingReport
    seconds: float
    method: str

    def __str__(self) -> str:
        counts = self.counts
        before = f" ({counts.documents_before:,} of them before)" if counts.documents_before else ""
        left_out = f", {counts.bad_lines:,} bad lines left out" if counts.bad_lines else ""
        return (
            f"{self.output}: {counts.documents:,} documents{before}, {counts.prompts:,} prompts"
            f"{left_out}, {self.seconds:.1f} s ({self.method})"
            + (f"\n{self.report}" if self.report.batches else "")
        )

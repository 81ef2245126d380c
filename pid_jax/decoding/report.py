"""What decoding did, in figures."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.batching import Batch


@dataclass
class DecodingReport:
    """What decoding did, added up over batches. Give one to `PidModel.generate` to have it filled.

    A row is one output that is being made: a prompt, or one of a prompt's beams.
    """

    batches: int = 0
    documents: int = 0
    prompts: int = 0
    tokens: int = 0
    """Selected tokens, end tokens included. Under beam search, those of the best outputs."""
    input_tokens: int = 0
    """Tokens of documents and prompts, start tokens included."""
    padding_tokens: int = 0
    """Positions of documents and prompts that are padding."""
    decoder_calls: int = 0
    """Calls of the decoder after the one that reads the prompts."""
    row_steps: int = 0
    """Rows computed, summed over decoder calls; padding too."""
    row_steps_saved: int = 0
    """Rows not computed because prompts that had ended were dropped."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Drafted tokens that greedy decoding selects itself."""

    def add(self, other: "DecodingReport") -> None:
        """Counts what another report counts."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def add_batch(self, batch: Batch, active: Bool[np.ndarray, "B P"]) -> None:
        """Counts a batch's documents and prompts, and what of it is padding."""
        self.batches += 1
        self.documents += int(active.any(axis=1).sum())
        self.prompts += int(active.sum())
        tokens = int(batch.document_mask.sum() + batch.prompt_mask[active].sum())
        self.input_tokens += tokens
        self.padding_tokens += batch.documents.size + batch.prompts.size - tokens

    def add_calls(self, calls: int, rows: int, all_rows: int) -> None:
        """Counts calls of the decoder on some of the rows that the batch had at first."""
        self.decoder_calls += calls
        self.row_steps += calls * rows
        self.row_steps_saved += calls * (all_rows - rows)

    def add_outputs(
        self,
        lengths: Int[np.ndarray, "B P"],
        drafted: Int[np.ndarray, "B P"],
        accepted: Int[np.ndarray, "B P"],
    ) -> None:
        """Counts the tokens of a batch's outputs."""
        self.tokens += int(lengths.sum())
        self.drafted_tokens += int(drafted.sum())
        self.accepted_tokens += int(accepted.sum())

    def __str__(self) -> str:
        lines = [
            f"{self.documents:,} documents, {self.prompts:,} prompts in {self.batches:,} batches: "
            f"{self.tokens:,} tokens in {self.decoder_calls:,} decoder calls"
        ]
        if self.padding_tokens:
            positions = self.input_tokens + self.padding_tokens
            lines.append(
                f"{self.padding_tokens:,} of {positions:,} positions of documents and prompts were "
                f"padding ({self.padding_tokens / positions:.0%})"
            )
        rows = self.row_steps + self.row_steps_saved
        if self.row_steps_saved:
            lines.append(
                f"dropping ended prompts saved {self.row_steps_saved:,} of {rows:,} row steps "
                f"({self.row_steps_saved / rows:.0%})"
            )
        if self.drafted_tokens:
            lines.append(
                f"{self.accepted_tokens:,} of {self.drafted_tokens:,} drafted tokens were right "
                f"({self.accepted_tokens / self.drafted_tokens:.0%})"
            )
        return "\n".join(lines)

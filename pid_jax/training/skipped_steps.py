"""Steps that were skipped, because their loss or gradient was not finite."""

from collections.abc import Mapping, Sequence
from typing import Any

NAME = "skipped_steps"
"""In a line of metrics.jsonl: the number of skipped steps until then."""


class SkippedSteps:
    """Counts skipped steps, of the whole run and in a row.

    A resumed run reads the counts from metrics.jsonl.
    """

    def __init__(self, most: int, lines: Sequence[Mapping[str, Any]] = ()) -> None:
        """most: skipped steps in a row that a run survives. lines: the run so far."""
        self._most = most
        self._in_a_row = 0
        self.total = 0
        for line in lines:
            if line.get("split") == "train":
                self.add(skipped=int(line.get(NAME, 0)) > self.total)

    def add(self, *, skipped: bool) -> None:
        """Counts one step."""
        self.total += skipped
        self._in_a_row = self._in_a_row + 1 if skipped else 0

    @property
    def too_many(self) -> bool:
        """Whether the run must end."""
        return self._in_a_row > self._most

    @property
    def metrics(self) -> dict[str, float]:
        """For the line of the last step. Empty for a run that skips nothing."""
        return {NAME: self.total} if self._most else {}

"""Limits on the number of tokens, truncation to them, and reports of what truncation removes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pid_jax.errors import UserError


@dataclass(frozen=True, slots=True)
class Limits:
    """The maximum number of tokens of a document, a prompt and a target.

    The limits include the special tokens of a document and the end token of a target, but not the
    decoder start token. Truncation preserves special tokens. `truncation_side` is the side of the
    DOCUMENT that is removed: "left" preserves the last turns of a dialogue, "right" the first
    sentences of an article. Prompts and targets lose their last tokens. Raises UserError for a
    limit below 1 and for another side.
    """

    document_tokens: int
    prompt_tokens: int
    target_tokens: int
    truncation_side: Literal["left", "right"] = "right"

    def __post_init__(self) -> None:
        for name in ("document_tokens", "prompt_tokens", "target_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.truncation_side not in ("left", "right"):
            raise UserError(f"truncation_side is 'left' or 'right', not {self.truncation_side!r}")


@dataclass(frozen=True, slots=True)
class TruncationReport:
    """How much truncation removes from a data set. Every document and subtask counts once.

    The longest lengths are those before truncation, in tokens.
    """

    limits: Limits
    documents: int
    documents_cut: int
    longest_document: int
    prompts: int
    prompts_cut: int
    longest_prompt: int
    targets: int
    targets_cut: int
    longest_target: int

    @property
    def anything_cut(self) -> bool:
        return bool(self.documents_cut or self.prompts_cut or self.targets_cut)

    def __str__(self) -> str:
        return "cut " + ", ".join(
            f"{cut:,} of {total:,} {what} to {limit:,} tokens (longest {longest:,})"
            for what, cut, total, limit, longest in (
                (
                    f"documents on the {self.limits.truncation_side}",
                    self.documents_cut,
                    self.documents,
                    self.limits.document_tokens,
                    self.longest_document,
                ),
                (
                    "prompts",
                    self.prompts_cut,
                    self.prompts,
                    self.limits.prompt_tokens,
                    self.longest_prompt,
                ),
                (
                    "targets",
                    self.targets_cut,
                    self.targets,
                    self.limits.target_tokens,
                    self.longest_target,
                ),
            )
        )


@dataclass(frozen=True, slots=True)
class TargetReport:
    """How many targets change when the tokenizer encodes and decodes them."""

    targets: int
    """Number of targets of subtasks without allowed outputs. Predictions for the others are
    copied from the list and never decoded."""
    changed: int
    """Number of targets whose decoded text differs from the target."""
    first: tuple[str, str] | None
    """The first target that changes, and its decoded text."""

    def __str__(self) -> str:
        counts = f"{self.changed:,} of {self.targets:,} targets change when encoded and decoded"
        if self.first is None:
            return counts
        before, after = self.first
        return f"{counts}, the first is {before!r} → {after!r}"


def cut_document(ids: Sequence[int], limits: Limits, edges: tuple[int, int]) -> Sequence[int]:
    """Removes text tokens on `limits.truncation_side` of a document, never special tokens.

    edges: the numbers of special tokens before and after the text.
    """
    if len(ids) <= limits.document_tokens:
        return ids
    before, after = edges
    end = len(ids) - after
    size = limits.document_tokens - before - after
    content = (
        ids[before : before + size] if limits.truncation_side == "right" else ids[end - size : end]
    )
    return [*ids[:before], *content, *ids[end:]]


def cut_target(ids: Sequence[int], limits: Limits) -> Sequence[int]:
    """Removes the last tokens of a target, never its end token."""
    if len(ids) <= limits.target_tokens:
        return ids
    return [*ids[: limits.target_tokens - 1], ids[-1]]

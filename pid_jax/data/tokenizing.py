"""From text to token ids: what is appended, what is cut, and a tokenizer made from scratch."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol, overload, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from pid_jax.data.examples import Example
from pid_jax.errors import UserError


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer, fast or slow, that this project relies on."""

    def __call__(self, text: Any, **options: Any) -> Any: ...

    def decode(self, token_ids: Any, **options: Any) -> Any: ...

    def save_pretrained(self, save_directory: Any, **options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """An example in token ids: one document, and a prompt and a target per subtask.

    No start token anywhere. A target ends with the end token, and is empty where there is
    none. `prompts[i]` and `targets[i]` belong together.
    """

    id: str
    document: Sequence[int]
    prompts: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.targets):
            raise ValueError(
                f"example {self.id!r} has {len(self.prompts)} prompts "
                f"but {len(self.targets)} targets"
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """The most tokens that a document, a prompt and a target may have.

    Special tokens count: a document's own, and a target's end token; the decoder start token
    does not. What is cut keeps them. `truncation_side` is the end of the DOCUMENT that is
    lost: "left" keeps the last turns of a dialogue, "right" the beginning of an article.
    Prompts and targets lose their last tokens.
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
    """What the limits take from a whole set; every document and subtask counts once.

    The longest lengths are those before anything was cut.
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
    """Which targets a tokenizer does not give back as they were."""

    targets: int
    """Those of all subtasks, but for subtasks with a list of allowed texts: what is predicted for
    these is a text of the list as it stands there."""
    changed: int
    first: tuple[str, str] | None
    """The first target that changes, and what comes back."""

    def __str__(self) -> str:
        counts = f"{self.changed:,} of {self.targets:,} targets do not come back from the tokenizer"
        if self.first is None:
            return counts
        before, after = self.first
        return f"{counts}, the first is {before!r} → {after!r}"


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids with the tokenizer's own special tokens (T5 appends </s>). Cuts nothing."""
    return next(_encode(tokenizer, [text], special_tokens=True))


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids without special tokens. Cuts nothing."""
    return next(_encode(tokenizer, [text], special_tokens=False))


def encode_target(tokenizer: Tokenizer, text: str, end_token_id: int) -> list[int]:
    """Token ids without special tokens, then the end token. Cuts nothing."""
    return [*next(_encode(tokenizer, [text], special_tokens=False)), end_token_id]


def leading_tokens(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text (BART's <s>; T5 has none)."""
    before, _ = _special_tokens_around(tokenizer)
    return encode_document(tokenizer, "a")[:before]


class TokenizedExamples(Sequence[TokenizedExample]):
    """A whole set in token ids, cut to the limits.

    Every document, and every distinct prompt and target, is tokenized once, here, and kept
    as compact arrays: a set asks the same prompts of every document, and most targets repeat.
    So the start of a run already knows what the limits cut and which shapes can occur.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        tokenizer: Tokenizer,
        limits: Limits,
        *,
        end_token_id: int,
        text_of: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """text_of: how outputs are read, for `target_report`."""
        self.limits = limits
        self.ids: list[str] = []
        counts: list[int] = []
        prompts: dict[str, int] = {}
        targets: dict[str, int] = {}
        prompt_rows: list[int] = []
        target_rows: list[int] = []
        free = array("b")

        def documents() -> Iterator[str]:
            for example in examples:
                self.ids.append(example.id)
                counts.append(len(example.subtasks))
                for subtask in example.subtasks:
                    free.append(subtask.allowed is None)
                    prompt_rows.append(prompts.setdefault(subtask.prompt, len(prompts)))
                    target_rows.append(
                        _NO_TARGET
                        if subtask.target is None
                        else targets.setdefault(subtask.target, len(targets))
                    )
                yield example.document

        edges = _special_tokens_around(tokenizer)
        if limits.document_tokens <= sum(edges):
            raise UserError(
                f"document_tokens is {limits.document_tokens}, which leaves no room for text: "
                f"the tokenizer adds {sum(edges)} special tokens to every document"
            )
        self.leading = leading_tokens(tokenizer)
        """What every document begins with."""
        self._documents = _Rows(
            _encode(tokenizer, documents(), special_tokens=True),
            lambda ids: _cut_document(ids, limits, edges),
        )
        # Now every example has been read, once, and no more than a portion of them was held.
        self._starts = _starts(counts)
        self._prompt_rows = np.array(prompt_rows, np.int64)
        self._target_rows = np.array(target_rows, np.int64)
        self._prompts = _Rows(
            _encode(tokenizer, prompts, special_tokens=False),
            lambda ids: ids[: limits.prompt_tokens],
        )
        self._free = np.array(free, bool)
        self._changed: dict[int, tuple[str, str]] = {}
        """By row, the targets that do not come back, and what does."""

        def target_tokens() -> Iterator[list[int]]:
            encoded = _encode(tokenizer, targets, special_tokens=False)
            for row, (target, ids) in enumerate(zip(targets, encoded, strict=True)):
                if text_of is not None and (back := text_of(ids)) != target:
                    self._changed[row] = target, back
                yield [*ids, end_token_id]

        self._targets = _Rows(target_tokens(), lambda ids: _cut_target(ids, limits))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.select(index, np.arange(self.subtask_counts[index]))

    def select(self, index: int, subtasks: Int[np.ndarray, " chosen"]) -> TokenizedExample:
        """The example with only these of its subtasks, in this order (0 is its first)."""
        places = self._starts[index] + subtasks
        return TokenizedExample(
            id=self.ids[index],
            document=self._documents[index],
            prompts=[self._prompts[row] for row in self._prompt_rows[places].tolist()],
            targets=[
                () if row == _NO_TARGET else self._targets[row]
                for row in self._target_rows[places].tolist()
            ],
        )

    @property
    def tokens(self) -> Int[np.ndarray, " distinct"]:
        """Every token that occurs."""
        held = self._documents, self._prompts, self._targets
        return np.unique(np.concatenate([np.unique(rows.tokens) for rows in held]))

    @property
    def document_lengths(self) -> Int[np.ndarray, " examples"]:
        return self._documents.lengths

    @property
    def subtask_counts(self) -> Int[np.ndarray, " examples"]:
        return np.diff(self._starts)

    @property
    def longest_prompt(self) -> int:
        return int(self._prompts.lengths.max(initial=0))

    @property
    def longest_target(self) -> int:
        return int(self._targets.lengths.max(initial=0))

    def subtask_range(self, index: int) -> slice:
        """Where the subtasks of an example stand among the subtasks of all examples."""
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    def targets_equal(self, target: Sequence[int]) -> Bool[np.ndarray, " all_subtasks"]:
        """Which subtasks of all examples have this target (end token included)."""
        wanted = list(target)
        rows = [row for row in range(len(self._targets)) if self._targets[row] == wanted]
        return np.isin(self._target_rows, rows)

    def without_target(self) -> Bool[np.ndarray, " all_subtasks"]:
        """Which subtasks of all examples have no target."""
        return self._target_rows == _NO_TARGET

    def lengths_before_cutting(self) -> dict[str, Int[np.ndarray, " texts"]]:
        """Of all "documents", "prompts" and "targets", special and end tokens included."""
        return {
            "documents": self._documents.lengths_before,
            "prompts": self._prompts.lengths_before[self._prompt_rows],
            "targets": self._targets.lengths_before[self._targets_asked],
        }

    @property
    def _targets_asked(self) -> Int[np.ndarray, " subtasks_with_target"]:
        return self._target_rows[self._target_rows != _NO_TARGET]

    def target_report(self) -> TargetReport:
        """How many targets do not come back, if the set was made with `text_of`."""
        rows = self._target_rows[self._free & (self._target_rows != _NO_TARGET)]
        changed = rows[np.isin(rows, list(self._changed))]
        first = self._changed[int(changed[0])] if len(changed) else None
        return TargetReport(len(rows), len(changed), first)

    def truncation_report(self) -> TruncationReport:
        asked = self._targets_asked
        return TruncationReport(
            limits=self.limits,
            documents=len(self),
            documents_cut=int(self._documents.cut.sum()),
            longest_document=self._documents.longest_before,
            prompts=len(self._prompt_rows),
            prompts_cut=int(self._prompts.cut[self._prompt_rows].sum()),
            longest_prompt=self._prompts.longest_before,
            targets=len(asked),
            targets_cut=int(self._targets.cut[asked].sum()),
            longest_target=self._targets.longest_before,
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> Tokenizer:
    """A fast tokenizer (transformers' PreTrainedTokenizerFast) trained on these texts.

    Byte-pair encoding over UTF-8 bytes, as GPT-2's: no text is outside its alphabet, and
    decoding gives back exactly what was encoded, white space included (only a special token's
    name becomes that token, as in every Hugging Face tokenizer). Every text begins as if after
    a space, so a word is the same token wherever it stands, and copying a value from a document
    is copying tokens. Special tokens as T5's: <pad> 0, </s> 1, <unk> 2 (never produced), and
    </s> is appended to a document.

    A pair of tokens is merged only if it occurs `min_frequency` times; small corpora may
    yield fewer than `vocab_size` tokens. The same texts in the same order give the same
    tokenizer. Raises UserError if `vocab_size` does not even hold the bytes.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special_tokens = ["<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(special_tokens) + len(alphabet)
    if vocab_size < smallest:
        raise UserError(
            f"a vocabulary of {vocab_size} tokens is too small: {smallest} are taken by the "
            "special tokens and the bytes, and whole words need more than that"
        )
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=special_tokens,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        # T5's forward pass takes no token_type_ids.
        model_input_names=["input_ids", "attention_mask"],
    )


_NO_TARGET = -1
_TEXTS_AT_ONCE = 1024


class _Rows:
    """Rows of token ids of different lengths in one array: 4 bytes a token, not 36."""

    def __init__(
        self, rows: Iterable[Sequence[int]], cut: Callable[[Sequence[int]], Sequence[int]]
    ) -> None:
        tokens = array("i")
        lengths, lengths_before = [], []
        for row in rows:
            kept = cut(row)
            tokens.extend(kept)
            lengths.append(len(kept))
            lengths_before.append(len(row))
        self.tokens = np.array(tokens, np.int32)
        self._starts = _starts(lengths)
        self.lengths = np.array(lengths, np.int64)
        self.lengths_before = np.array(lengths_before, np.int64)
        self.cut = self.lengths < self.lengths_before

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest_before(self) -> int:
        return int(self.lengths_before.max(initial=0))

    def __getitem__(self, row: int) -> list[int]:
        tokens: list[int] = self.tokens[self._starts[row] : self._starts[row + 1]].tolist()
        return tokens


def _starts(lengths: Sequence[int]) -> Int[np.ndarray, " rows_and_end"]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _encode(
    tokenizer: Tokenizer, texts: Iterable[str], *, special_tokens: bool
) -> Iterator[list[int]]:
    """In portions: a fast tokenizer spreads each over the cores, and none is very large."""
    texts = iter(texts)
    while portion := list(islice(texts, _TEXTS_AT_ONCE)):
        yield from tokenizer(
            portion,
            add_special_tokens=special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # else it warns of long texts, which are cut and counted here
        )["input_ids"]


def _special_tokens_around(tokenizer: Tokenizer) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and after a text."""
    bare = encode_prompt(tokenizer, "a")
    whole = encode_document(tokenizer, "a")
    for before in range(len(whole) - len(bare) + 1):
        if whole[before : before + len(bare)] == bare:
            return before, len(whole) - len(bare) - before
    raise ValueError(
        f"the tokenizer encodes 'a' as {bare} without special tokens but as {whole} with them: "
        "cannot tell which of a document's tokens must survive truncation"
    )


def _cut_document(ids: Sequence[int], limits: Limits, edges: tuple[int, int]) -> Sequence[int]:
    if len(ids) <= limits.document_tokens:
        return ids
    before, after = edges
    end = len(ids) - after
    room = limits.document_tokens - before - after
    content = (
        ids[before : before + room] if limits.truncation_side == "right" else ids[end - room : end]
    )
    return [*ids[:before], *content, *ids[end:]]


def _cut_target(ids: Sequence[int], limits: Limits) -> Sequence[int]:
    if len(ids) <= limits.target_tokens:
        return ids
    return [*ids[: limits.target_tokens - 1], ids[-1]]

"""Random calls, each drawn from a seed and its own number alone."""

import dataclasses
from typing import Any

import numpy as np

from pid_jax.decoding.options import GenerationOptions
from tests.fuzz import pairs

CASES_ALIKE = 16
"""So many cases in a row have the same sizes and the same compiled programs."""
END = 1

Tokens = list[int]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What decides the compiled programs."""

    pair: str
    documents: int
    document_tokens: int
    prompts: int
    prompt_tokens: int
    max_new_tokens: int
    method: str
    num_beams: int
    early_stopping: bool | str
    draft_tokens: int
    compact: bool | str
    limited: bool
    """Whether outputs are limited to lists, of a single one if `lopsided`."""
    lopsided: bool
    """Whether two documents have eight long answers each and all other answers are one token: what
    is left of a batch then has another shape than all that came before."""
    batched: bool
    """Whether the call is cut into several batches."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of `generate`."""

    number: int
    kind: Kind
    documents: list[Tokens]
    prompts: list[list[Tokens]]
    options: dict[str, Any]
    every: int | None
    """The call is made of `stream` too, with this `every`."""

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return (
            f"case {self.number}: pairs.of({self.kind.pair!r}).ours.generate({self.documents}, "
            f"{self.prompts}, {options})"
        )


def draw(seed: int, number: int) -> Case:
    """The case of this number."""
    kind = _kind(np.random.default_rng([seed, 0, number // CASES_ALIKE]))
    random = np.random.default_rng([seed, 1, number])
    documents, prompts = _texts(random, kind)
    options: dict[str, Any] = {
        "max_new_tokens": kind.max_new_tokens,
        "method": kind.method,
        "compact": kind.compact,
    }
    options |= _rules(random, kind)
    if kind.num_beams > 1:
        options |= {"num_beams": kind.num_beams, "early_stopping": kind.early_stopping}
        options["length_penalty"] = float(random.choice([1.0, 0.0, 0.6, 2.0, -1.0]))
        options["num_return_sequences"] = int(random.integers(1, kind.num_beams + 1))
    if kind.draft_tokens:
        options["draft_tokens"] = kind.draft_tokens
        options["draft_ngram"] = int(random.choice([1, 3]))
    if kind.limited:
        options["allowed"] = _allowed(random, kind, prompts, options.get("min_new_tokens", 0))
    if kind.batched:
        name, value = [("batch_size", 1), ("batch_size", 2), ("batch_tokens", 300)][
            random.integers(3)
        ]
        options[name] = value
    every = int(random.integers(1, 4)) if kind.num_beams == 1 and random.random() < 0.15 else None
    return Case(number, kind, documents, prompts, options, every)


def _kind(random: np.random.Generator) -> Kind:
    def one_of(*values: Any) -> Any:
        return values[random.integers(len(values))]

    way = one_of("greedy", "greedy", "greedy", "beams", "beams", "drafts", "lopsided")
    lopsided = way == "lopsided"
    return Kind(
        pair=one_of(*pairs.NAMES),
        documents=4 if lopsided else one_of(1, 2, 4),
        document_tokens=one_of(9, 30, 60),
        prompts=16 if lopsided else one_of(1, 4, 8),
        prompt_tokens=one_of(0, 3, 7),
        max_new_tokens=12 if lopsided else one_of(1, 2, 8, 12),
        method="pid" if lopsided else one_of("pid", "pid", "pie"),
        num_beams=one_of(2, 4) if way == "beams" else 1,
        early_stopping=one_of(False, True, "never"),
        draft_tokens=one_of(2, 4) if way == "drafts" else 0,
        compact=one_of("auto", "auto", True) if lopsided else one_of("auto", True, False),
        limited=lopsided or random.random() < 0.2,
        lopsided=lopsided,
        batched=not lopsided and random.random() < 0.2,
    )


def _tokens(random: np.random.Generator, count: int) -> Tokens:
    return random.integers(pairs.FIRST_TOKEN, pairs.VOCABULARY, count).tolist()


def _texts(random: np.random.Generator, kind: Kind) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Ragged in every way; the longest of each is as long as the kind says."""
    sizes = random.integers(0, kind.document_tokens + 1, kind.documents)
    sizes[random.integers(kind.documents)] = kind.document_tokens
    counts = random.integers(0, kind.prompts + 1, kind.documents)
    counts[random.integers(kind.documents)] = kind.prompts
    if kind.lopsided:
        counts[:] = random.choice([8, 16])
    elif kind.method == "pie":
        counts[:] = kind.prompts  # each is a document, and each number of them another program
    lengths = [random.integers(0, kind.prompt_tokens + 1, count) for count in counts]
    lengths[int(np.argmax(counts))][0] = kind.prompt_tokens
    documents = [_tokens(random, size) for size in sizes]
    prompts = [[_tokens(random, length) for length in row] for row in lengths]
    return documents, prompts


def _rules(random: np.random.Generator, kind: Kind) -> dict[str, Any]:
    """Options that change which tokens are chosen, two or so at a time."""
    if kind.lopsided:
        return {}
    found: dict[str, Any] = {}
    if random.random() < 0.35:
        found["min_new_tokens"] = int(random.integers(0, kind.max_new_tokens + 1))
    if random.random() < 0.25:
        stops = [_tokens(random, int(size)) for size in random.integers(1, 3, 2)]
        found["stop"] = stops
    if kind.draft_tokens or kind.limited:
        return found
    if random.random() < 0.35:
        found["repetition_penalty"] = float(random.choice([0.7, 1.3, 2.5]))
    if random.random() < 0.35:
        found["no_repeat_ngram_size"] = int(random.choice([2, 3]))
    if "suppress_tokens" in GenerationOptions.__dataclass_fields__:
        if random.random() < 0.2:
            tokens = _tokens(random, 3)  # transformers refuses a token that is forced, too
            found["suppress_tokens"] = [t for t in tokens if t != pairs.FORCED_FIRST]
        if random.random() < 0.2:
            found["begin_suppress_tokens"] = [END, *_tokens(random, 2)]
        if random.random() < 0.2:
            found["bad_words_ids"] = [_tokens(random, 1), _tokens(random, 2), _tokens(random, 3)]
    return found


def _allowed(
    random: np.random.Generator, kind: Kind, prompts: list[list[Tokens]], shortest: int
) -> list[list[list[Tokens] | None]]:
    """For each prompt a list of allowed outputs, or None; the end token is left to be added."""
    longest = kind.max_new_tokens - 1

    def outputs(low: int, high: int) -> list[Tokens]:
        low = min(max(low, shortest), longest)
        count = 1 if kind.lopsided else int(random.integers(1, 5))
        sizes = random.integers(low, max(high, low) + 1, count)
        # An end token may stand at the end alone.
        drawn = [np.array(_tokens(random, int(size)), int) for size in sizes]
        return [np.where(row == pairs.OTHER_END, pairs.FIRST_TOKEN, row).tolist() for row in drawn]

    if kind.lopsided:
        long = set(random.choice(len(prompts), 2, replace=False).tolist())
        return [
            [
                outputs(longest - 1, longest) if i in long and j < 8 else [[]]
                for j in range(len(row))
            ]
            for i, row in enumerate(prompts)
        ]
    if longest < max(shortest, 1):
        return [[None] * len(row) for row in prompts]
    return [
        [None if random.random() < 0.3 else outputs(1, longest) for _ in row] for row in prompts
    ]

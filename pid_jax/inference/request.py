"""Step 1 of `generate`, the request: texts and options of a caller become checked token ids."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pid_jax import arguments, models
from pid_jax.data import sequences, tokenizing
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding import allowed_outputs
from pid_jax.decoding.options import GenerationOptions
from pid_jax.decoding.patterns import JsonSchema, Pattern, Regex
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, end_token_ids

Text = sequences.Text
"""Text, or token ids that are used as they are."""
Method = Literal["pid", "pie"]
NewTokens = int | Sequence[Sequence[int]]
"""A limit for all prompts, or one for each, nested as the prompts are."""


@dataclass(frozen=True)
class AllowedList:
    """The allowed outputs of a prompt."""

    outputs: list[list[int]]
    """Token ids, each with its end token."""
    texts: Mapping[tuple[int, ...], str]
    """The texts as the caller wrote them, by their tokens without the end token."""


AllowedOutputs = AllowedList | Pattern
"""A list of allowed outputs, or a pattern that outputs match."""
Allowed = Sequence[Sequence[Sequence[Text] | Pattern | None]]
"""What a caller gives: nested as the prompts are, None where every output is allowed."""


@dataclass(frozen=True)
class Request:
    """What a caller wants decoded or scored."""

    examples: list[TokenizedExample]
    """One for each document, with its prompts and, for scoring, its targets."""
    method: Method
    options: GenerationOptions
    max_new_tokens: list[list[int]]
    """Of each prompt."""
    allowed: list[list[AllowedOutputs | None]] | None
    """Of each prompt; None: every output is allowed."""

    def allowed_for(self, document: int, prompt: int) -> AllowedOutputs | None:
        """The allowed outputs of a prompt, or None."""
        return None if self.allowed is None else self.allowed[document][prompt]


class RequestReader:
    """Reads texts and token ids for one model. Without a tokenizer, token ids only."""

    def __init__(self, config: Config, tokenizer: Any | None) -> None:
        self.config = config
        self.tokenizer = tokenizer

    def read(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        options: GenerationOptions,
        method: Method,
        *,
        max_new_tokens: NewTokens | None = None,
        allowed: Allowed | None = None,
        targets: Sequence[Sequence[Text]] | None = None,
    ) -> Request:
        """The request of a call. max_new_tokens: None for that of the options.

        Raises `UserError` naming the item that does not fit.
        """
        examples = self.examples(documents, prompts, targets)
        return self.request(
            examples, options, method, max_new_tokens=max_new_tokens, allowed=allowed
        )

    def request(
        self,
        examples: list[TokenizedExample],
        options: GenerationOptions,
        method: Method,
        *,
        max_new_tokens: NewTokens | None = None,
        allowed: Allowed | None = None,
    ) -> Request:
        """The request for examples that are tokenized already."""
        if method not in ("pid", "pie"):
            raise UserError(f"method={method!r} is unknown; supported: 'pid', 'pie'")
        if self.config.max_decoder_tokens is not None:
            lengths = [len(z) for one in examples for z in one.prompts if method == "pid"]
            options = options.limited_to(self.config.max_decoder_tokens - max(lengths, default=0))
        limits = self._limits(examples, options, max_new_tokens)
        longest = max((n for row in limits for n in row), default=options.max_new_tokens)
        self.check_new_tokens(longest)
        self._check_positions(examples, limits, method)
        lists = None if allowed is None else self._allowed(examples, allowed, options, limits)
        return Request(examples, method, options, limits, lists)

    @property
    def any_text_fits(self) -> bool:
        """Whether no text can be too long for the model or have tokens that it cannot read."""
        config = self.config
        return (
            config.max_document_tokens is None
            and config.max_decoder_tokens is None
            and not models.family_of(config.model_type).unreadable_tokens(config)
            and (self.tokenizer is None or len(self.tokenizer) <= config.vocab_size)
        )

    def check_new_tokens(self, max_new_tokens: int) -> None:
        """Raises `UserError` where the decoder lacks the positions, whatever the prompt."""
        most = self.config.max_decoder_tokens
        if most is not None and max_new_tokens > most:
            raise UserError(
                f"max_new_tokens={max_new_tokens}, but the model's decoder has positions for {most}"
            )

    def check(
        self, document: str, prompts: Sequence[str], method: Method, max_new_tokens: int
    ) -> None:
        """Raises `UserError` for a text that the model cannot read or has no positions for."""
        example = TokenizedExample(
            "",
            self._encode(document, "the document", tokenizing.encode_document),
            [
                self._encode(prompt, f"the prompt of subtask {number}", tokenizing.encode_prompt)
                for number, prompt in enumerate(prompts, start=1)
            ],
            [()] * len(prompts),
        )
        limits = [max_new_tokens] * len(prompts)
        for prompt, part, why in too_long(self.config, example, limits, method):
            if part == "prompt":
                raise UserError(f"the prompt of subtask {prompt + 1} {why}")
            with_prompt = f" with the prompt of subtask {prompt + 1}" if method == "pie" else ""
            raise UserError(f"the document{with_prompt} {why}")

    def allowed(
        self, texts: Sequence[Text], where: str, *, min_new_tokens: int, max_new_tokens: int
    ) -> AllowedList:
        """A list of allowed outputs. Raises `UserError` for an output that does not fit."""
        names = tuple(texts)
        encoded = [
            self._encode(name, f"{where}[{k}]", self._encode_target) for k, name in enumerate(names)
        ]
        spelled = _spellings(names, encoded, where)
        admitted = allowed_outputs.admissible(
            encoded,
            names,
            where,
            end_token_ids=end_token_ids(self.config),
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
        )
        return AllowedList(admitted, spelled)

    def examples(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        targets: Sequence[Sequence[Text]] | None = None,
    ) -> list[TokenizedExample]:
        """The token ids of all texts. Raises `UserError` naming the text that does not fit."""
        documents = sequences.items(documents, "documents", "a list of documents")
        prompt_rows = _rows(prompts, "prompts", len(documents))
        target_rows = None if targets is None else _rows(targets, "targets", len(documents))
        # Documents often have the same prompts.
        encode_prompt = functools.cache(tokenizing.encode_prompt)
        encode_target = functools.cache(self._encode_target)
        examples = []
        for i, (document, row) in enumerate(zip(documents, prompt_rows, strict=True)):
            answers = [()] * len(row) if target_rows is None else target_rows[i]
            if len(answers) != len(row):
                raise UserError(f"prompts[{i}] has {len(row)}, but targets[{i}] {len(answers)}")
            example = TokenizedExample(
                str(i),
                self._encode(document, f"documents[{i}]", tokenizing.encode_document),
                [
                    self._encode(prompt, f"prompts[{i}][{j}]", encode_prompt)
                    for j, prompt in enumerate(row)
                ],
                [
                    self._encode(target, f"targets[{i}][{j}]", encode_target)
                    for j, target in enumerate(answers)
                ],
            )
            examples.append(example)
        return examples

    @staticmethod
    def limits(max_new_tokens: Any) -> Any:
        """Nested limits of new tokens as lists of integers; any other value as it is.

        Raises `UserError` for nested values that are not limits.
        """
        if not sequences.is_collection(max_new_tokens):
            return max_new_tokens
        name = "max_new_tokens"
        nested = "a number, or a list with one list of numbers per document"
        return [
            [
                arguments.integer(f"{name}[{i}][{j}]", limit, 1)
                for j, limit in enumerate(sequences.items(row, f"{name}[{i}]", "a list of numbers"))
            ]
            for i, row in enumerate(sequences.items(max_new_tokens, name, nested))
        ]

    def _limits(
        self,
        examples: list[TokenizedExample],
        options: GenerationOptions,
        max_new_tokens: NewTokens | None,
    ) -> list[list[int]]:
        """The most tokens of each prompt's output."""
        counts = [len(example.prompts) for example in examples]
        rows = self.limits(max_new_tokens)
        if not isinstance(rows, list):
            return [[options.max_new_tokens] * count for count in counts]
        if list(map(len, rows)) != counts:
            raise UserError(
                "max_new_tokens must be a number, or nested as the prompts are: the documents have "
                f"{_shortened(counts)} prompts, and max_new_tokens has "
                f"{_shortened(list(map(len, rows)))} numbers"
            )
        for i, row in enumerate(rows):
            for j, limit in enumerate(row):
                if limit < options.min_tokens_of_allowed():
                    raise UserError(
                        f"max_new_tokens[{i}][{j}]={limit} is below min_new_tokens="
                        f"{options.min_new_tokens}"
                    )
        return rows

    def _check_positions(
        self, examples: list[TokenizedExample], limits: list[list[int]], method: Method
    ) -> None:
        """Raises `UserError` for a text that the model has no positions for."""
        for i, (example, row) in enumerate(zip(examples, limits, strict=True)):
            for j, part, why in too_long(self.config, example, row, method):
                where = f"prompts[{i}][{j}]"
                if part == "document":
                    where = f"documents[{i}] with {where}" if method == "pie" else f"documents[{i}]"
                raise UserError(f"{where} {why}")

    def _allowed(
        self,
        examples: list[TokenizedExample],
        allowed: Allowed,
        options: GenerationOptions,
        limits: list[list[int]],
    ) -> list[list[AllowedOutputs | None]]:
        allowed = sequences.items(allowed, "allowed", "a list with one list per document")
        if len(allowed) != len(examples):
            raise UserError(
                f"allowed must be one list per document: there are {len(examples)} documents "
                f"and {len(allowed)} lists"
            )
        lists: dict[tuple[Any, ...], AllowedList] = {}
        rows: list[list[AllowedOutputs | None]] = []
        for i, (example, of_document) in enumerate(zip(examples, allowed, strict=True)):
            each = (
                f"a list, with one list, pattern or None for each of {len(example.prompts)} prompts"
            )
            of_document = sequences.items(of_document, f"allowed[{i}]", each)
            if len(of_document) != len(example.prompts):
                raise UserError(f"allowed[{i}] must be {each}, but has {len(of_document)}")
            row: list[AllowedOutputs | None] = []
            for j, texts in enumerate(of_document):
                if texts is None or isinstance(texts, Regex | JsonSchema):
                    row.append(texts)
                    continue
                where = f"allowed[{i}][{j}]"
                names = sequences.texts_or_ids(texts, where, "a list of texts, a pattern, or None")
                key = (names, limits[i][j])
                if key not in lists:
                    lists[key] = self.allowed(
                        names,
                        where,
                        min_new_tokens=options.min_tokens_of_allowed(),
                        max_new_tokens=limits[i][j],
                    )
                row.append(lists[key])
            rows.append(row)
        return rows

    def _encode_target(self, tokenizer: Any, text: str) -> list[int]:
        return tokenizing.encode_target(tokenizer, text, self.config.eos_token_id)

    def _encode(
        self, text: Text, where: str, encode: Callable[[Any, str], list[int]]
    ) -> Sequence[int]:
        read = sequences.text_or_ids(text, where)
        if isinstance(read, str):
            if self.tokenizer is None:
                raise UserError(f"{where} is text, but the model has no tokenizer: give token ids")
            read = encode(self.tokenizer, read)
        unreadable = models.why_unreadable(self.config, read)
        if unreadable is not None:
            token, why = unreadable
            raise UserError(f"{where} has the token id {token}, {why}")
        return read


def too_long(
    config: Config, example: TokenizedExample, new_tokens: Sequence[int], method: str
) -> Iterator[tuple[int, Literal["document", "prompt"], str]]:
    """The texts that a model has no positions for: the prompt, which of the two, and why.

    new_tokens: for each prompt, the most tokens of its output where the example has no target.
    """
    lengths = zip(map(len, example.prompts), map(len, example.targets), new_tokens, strict=True)
    for number, (prompt, target, limit) in enumerate(lengths):
        document, answer = len(example.document), target or limit
        if method == "pie":
            document, prompt = document + prompt, 0
        most = config.max_document_tokens
        if most is not None and document > most:
            why = f"has {document} tokens, but the model has positions for {most}: shorten it"
            yield number, "document", why
        most = config.max_decoder_tokens
        # The decoder reads the start token and not the answer's last token.
        if most is not None and prompt + answer > most:
            why = (
                f"has {prompt} tokens and its answer up to {answer}, but the model's decoder has "
                f"positions for {most} in all: shorten the prompt, or the answer (max_new_tokens)"
            )
            yield number, "prompt", why


def _shortened(counts: list[int]) -> str:
    shown = ", ".join(map(str, counts[:8]))
    return shown + ", ..." * (len(counts) > 8)


def _rows(rows: Any, name: str, documents: int) -> list[list[Any]]:
    """One list per document."""
    rows = sequences.items(rows, name, "a list with one list per document")
    if len(rows) != documents:
        raise UserError(
            f"{name} must be one list per document: there are {documents} documents and "
            f"{len(rows)} lists of {name}"
        )
    return [
        sequences.items(row, f"{name}[{i}]", "a list, one item per prompt")
        for i, row in enumerate(rows)
    ]


def _spellings(
    names: tuple[Any, ...], encoded: list[Sequence[int]], where: str
) -> dict[tuple[int, ...], str]:
    """The texts of one list by their tokens, which may decode to a slightly different text."""
    spelled: dict[tuple[int, ...], str] = {}
    for name, tokens in zip(names, encoded, strict=True):
        if not isinstance(name, str):
            continue
        body = tuple(tokens[:-1])
        if spelled.setdefault(body, name) != name:
            raise UserError(
                f"{where}: {spelled[body]!r} and {name!r} are the same tokens to this "
                "tokenizer, which cannot tell them apart: remove one of them"
            )
    return spelled

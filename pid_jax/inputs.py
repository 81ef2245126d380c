"""What callers give to `PidModel`, made into token ids, batches and tables."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pid_jax import models, prompt_in_decoder
from pid_jax.data import sequences, tokenizing
from pid_jax.data.batching import Batch, collate
from pid_jax.data.detokenizing import Detokenizer
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding import barring, constraints, stopping
from pid_jax.decoding.engine import Job
from pid_jax.decoding.options import Controls, GenerationOptions
from pid_jax.decoding.planning import PlannedBatch
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, control_token_ids, end_token_ids

Text = sequences.Text
"""Text, or token ids that are used as they are."""
Method = Literal["pid", "pie"]


@dataclass(frozen=True)
class Work:
    """Examples to decode, and where the answer to each of their prompts belongs."""

    examples: list[TokenizedExample]
    places: list[list[tuple[int, int, int]]]
    """For each example and prompt of it: the document and the prompt as the caller counts, and
    which sample of it."""
    roots: list[list[int]] | None
    """Each prompt's node in the forest of allowed outputs."""
    spellings: Mapping[int, Mapping[tuple[int, ...], str]]
    """By root: the allowed texts as the caller wrote them, by their tokens."""
    keys: list[list[tuple[int, int]]] | None
    """Each prompt's key for sampling."""
    options: GenerationOptions
    """Those asked for; a checkpoint's longest output is cut to the positions that prompts leave."""
    most_examples_each: int = 1
    """Of a document: 1 under "pid", the most prompts under "pie"."""

    def spelled(self, example: int, prompt: int) -> Mapping[tuple[int, ...], str] | None:
        """The texts of this prompt's list, by their tokens; None where it has no list."""
        if self.roots is None or self.roots[example][prompt] == constraints.UNCONSTRAINED:
            return None
        return self.spellings.get(self.roots[example][prompt], {})


def too_long(
    config: Config, example: TokenizedExample, new_tokens: int
) -> tuple[int | None, str] | None:
    """What the model has no positions for: None for the document, or a prompt's index; and why.

    new_tokens: the most of an answer, where an example has no target.
    """
    most = config.max_document_tokens
    if most is not None and len(example.document) > most:
        return None, (
            f"has {len(example.document)} tokens, but the model has positions for {most}: "
            "shorten it"
        )
    most = config.max_decoder_tokens
    if most is None:
        return None
    for number, (prompt, target) in enumerate(zip(example.prompts, example.targets, strict=True)):
        answer = len(target) or new_tokens
        # The start token is read, the answer's last token is not.
        if len(prompt) + answer > most:
            return number, (
                f"has {len(prompt)} tokens and its answer up to {answer}, but the model's decoder "
                f"has positions for {most} in all: shorten the prompt, or the answer "
                "(max_new_tokens)"
            )
    return None


class Inputs:
    """Reads texts and token ids for one model. Without a tokenizer, token ids only."""

    def __init__(self, config: Config, tokenizer: Any | None) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._automata: dict[tuple[Any, ...], stopping.StopAutomaton] = {}
        """The latest, which most calls ask for again."""

    @functools.cached_property
    def _leading(self) -> list[int]:
        return [] if self.tokenizer is None else tokenizing.leading_tokens(self.tokenizer)

    @property
    def any_text_fits(self) -> bool:
        """Whether no text can be too long for the model, or hold tokens that it cannot read."""
        config = self.config
        return (
            config.max_document_tokens is None
            and config.max_decoder_tokens is None
            and not models.family_of(config.model_type).unreadable_tokens(config)
            and (self.tokenizer is None or len(self.tokenizer) <= config.vocab_size)
        )

    def check_new_tokens(self, max_new_tokens: int) -> None:
        """Raises `UserError` where the decoder has not so many positions for any prompt."""
        most = self.config.max_decoder_tokens
        if most is not None and max_new_tokens > most:
            raise UserError(
                f"max_new_tokens={max_new_tokens}, but the model's decoder has positions for {most}"
            )

    def check(
        self, document: str, prompts: Sequence[str], method: Method, max_new_tokens: int
    ) -> None:
        """Raises `UserError` for a text that the model cannot read, or for lack of positions."""
        example = TokenizedExample(
            "",
            self._encode(document, "the document", tokenizing.encode_document),
            [
                self._encode(prompt, f"the prompt of subtask {number}", tokenizing.encode_prompt)
                for number, prompt in enumerate(prompts, start=1)
            ],
            [()] * len(prompts),
        )
        if method == "pid":
            found = too_long(self.config, example, max_new_tokens)
            if found is not None:
                place = "document" if found[0] is None else f"prompt of subtask {found[0] + 1}"
                raise UserError(f"the {place} {found[1]}")
            return
        pairs = prompt_in_decoder.prompt_in_encoder([example], self._leading)
        for number, pair in enumerate(pairs, start=1):
            found = too_long(self.config, pair, max_new_tokens)
            if found is not None:
                raise UserError(f"the document with the prompt of subtask {number} {found[1]}")

    def allowed(
        self, texts: Sequence[Text], where: str, *, min_new_tokens: int, max_new_tokens: int
    ) -> tuple[list[list[int]], dict[tuple[int, ...], str]]:
        """A list of allowed outputs as token ids, and the texts among them by their tokens.

        Raises `UserError` for what does not fit.
        """
        names = tuple(texts)
        encoded = [
            self._encode(name, f"{where}[{k}]", self._encode_target) for k, name in enumerate(names)
        ]
        spelled = _spellings(names, encoded, where)
        admitted = constraints.admissible(
            encoded,
            names,
            where,
            end_token_ids=end_token_ids(self.config),
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
        )
        return admitted, spelled

    def examples(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        targets: Sequence[Sequence[Text]] | None = None,
    ) -> list[TokenizedExample]:
        """The token ids of all texts. Raises `UserError` naming the place of what does not fit."""
        documents = sequences.items(documents, "documents", "a list of documents")
        asked = self._rows(prompts, "prompts", len(documents))
        wanted = None if targets is None else self._rows(targets, "targets", len(documents))
        # The same prompts are asked of document after document.
        encode_prompt = functools.cache(tokenizing.encode_prompt)
        encode_target = functools.cache(self._encode_target)
        examples = []
        for i, (document, row) in enumerate(zip(documents, asked, strict=True)):
            answers = [()] * len(row) if wanted is None else wanted[i]
            if len(answers) != len(row):
                raise UserError(f"prompts[{i}] holds {len(row)}, but targets[{i}] {len(answers)}")
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

    def _rows(self, rows: Any, name: str, documents: int) -> list[list[Any]]:
        """One list per document."""
        rows = sequences.items(rows, name, "a list with one list per document")
        if len(rows) != documents:
            raise UserError(
                f"{name} must hold one list per document: there are {documents} documents and "
                f"{len(rows)} lists of {name}"
            )
        return [
            sequences.items(row, f"{name}[{i}]", "a list, one item per prompt")
            for i, row in enumerate(rows)
        ]

    def _encode_target(self, tokenizer: Any, text: str) -> list[int]:
        return tokenizing.encode_target(tokenizer, text, self.config.eos_token_id)

    def _encode(
        self, given: Text, where: str, encode: Callable[[Any, str], list[int]]
    ) -> Sequence[int]:
        read = sequences.text_or_ids(given, where)
        if isinstance(read, str):
            if self.tokenizer is None:
                raise UserError(f"{where} is text, but the model has no tokenizer: give token ids")
            read = encode(self.tokenizer, read)
        found = models.why_unreadable(self.config, read)
        if found is not None:
            token, why = found
            raise UserError(f"{where} holds the token id {token}, {why}")
        return read

    def work(
        self,
        examples: list[TokenizedExample],
        allowed: Sequence[Sequence[Sequence[Text] | None]] | None,
        method: Method,
        options: GenerationOptions,
    ) -> tuple[Work, Controls]:
        """What to decode under either method, and the tables that the options ask for."""
        if method not in ("pid", "pie"):
            raise UserError(f"method={method!r} is unknown; supported: 'pid', 'pie'")
        if self.config.max_decoder_tokens is not None:
            prompts = [prompt for one in examples for prompt in one.prompts if method == "pid"]
            options = options.cut_to(
                self.config.max_decoder_tokens - max(map(len, prompts), default=0)
            )
        forest, roots = None, None
        spellings: dict[int, dict[tuple[int, ...], str]] = {}
        if allowed is not None:
            forest, roots, spellings = self._forest(examples, allowed, options)
        stops = None
        if options.stop:
            stops = self._stops(tuple(options.stop))
        copies = options.num_return_sequences if options.do_sample else 1
        places = [
            [(i, j, k) for j in range(len(example.prompts)) for k in range(copies)]
            for i, example in enumerate(examples)
        ]
        keys = None
        if options.do_sample:
            keys = [_sampling_keys(options.seed, example, copies) for example in examples]
        if copies > 1:
            examples = [
                dataclasses.replace(
                    example,
                    prompts=[prompt for prompt in example.prompts for _ in range(copies)],
                    targets=[target for target in example.targets for _ in range(copies)],
                )
                for example in examples
            ]
            if roots is not None:
                roots = [[root for root in row for _ in range(copies)] for row in roots]
        each = 1
        if method == "pie":
            each = max((len(example.prompts) for example in examples), default=1)
            examples = prompt_in_decoder.prompt_in_encoder(examples, self._leading)
            places, roots, keys = _one_each(places), _one_each(roots), _one_each(keys)
        self._check_positions(examples, places, options.max_new_tokens, method)
        controls = options.controls(stops, forest, *self._barred(options))
        return Work(examples, places, roots, spellings, keys, options, each), controls

    def _check_positions(
        self,
        examples: list[TokenizedExample],
        places: list[list[tuple[int, int, int]]],
        new_tokens: int,
        method: Method,
    ) -> None:
        """Raises `UserError` for what is longer than the model has positions for."""
        self.check_new_tokens(new_tokens)
        for example, row in zip(examples, places, strict=True):
            found = too_long(self.config, example, new_tokens) if row else None
            if found is not None:
                number, why = found
                i, j, _ = row[number or 0]
                where = f"prompts[{i}][{j}]"
                if number is None:
                    where = f"documents[{i}] with {where}" if method == "pie" else f"documents[{i}]"
                raise UserError(f"{where} {why}")

    def _forest(
        self,
        examples: list[TokenizedExample],
        allowed: Sequence[Sequence[Sequence[Text] | None]],
        options: GenerationOptions,
    ) -> tuple[constraints.PrefixForest, list[list[int]], dict[int, dict[tuple[int, ...], str]]]:
        allowed = sequences.items(allowed, "allowed", "a list with one list per document")
        if len(allowed) != len(examples):
            raise UserError(
                f"allowed must hold one list per document: there are {len(examples)} documents "
                f"and {len(allowed)} lists"
            )
        lists: dict[tuple[Any, ...], list[list[int]]] = {}
        spelled: dict[tuple[Any, ...], dict[tuple[int, ...], str]] = {}
        wanted: list[list[tuple[Any, ...] | None]] = []
        for i, (example, of_document) in enumerate(zip(examples, allowed, strict=True)):
            each = f"a list, with one list or None for each of {len(example.prompts)} prompts"
            of_document = sequences.items(of_document, f"allowed[{i}]", each)
            if len(of_document) != len(example.prompts):
                raise UserError(f"allowed[{i}] must be {each}, but holds {len(of_document)}")
            row: list[tuple[Any, ...] | None] = []
            for j, texts in enumerate(of_document):
                if texts is None:
                    row.append(None)
                    continue
                where = f"allowed[{i}][{j}]"
                names = sequences.texts_or_ids(texts, where, "a list of texts, or None")
                if names not in lists:
                    lists[names], spelled[names] = self.allowed(
                        names,
                        where,
                        min_new_tokens=options.least_in_lists(),
                        max_new_tokens=options.max_new_tokens,
                    )
                row.append(names)
            wanted.append(row)
        forest, roots = constraints.compile_forest(list(lists.values()))
        root_of = dict(zip(lists, roots, strict=True))
        nodes = [
            [constraints.UNCONSTRAINED if names is None else root_of[names] for names in row]
            for row in wanted
        ]
        spellings: dict[int, dict[tuple[int, ...], str]] = {}
        for names, of_list in spelled.items():
            spellings.setdefault(root_of[names], {}).update(of_list)
        return forest, nodes, spellings

    @functools.cached_property
    def _token_bytes(self) -> stopping.TokenBytes | None:
        if self.tokenizer is None:
            return None
        detokenizer = Detokenizer(self.tokenizer, control_token_ids(self.config))
        return stopping.token_bytes(detokenizer, self.config.vocab_size)

    def _stops(self, stop: Sequence[str | Sequence[int]]) -> stopping.StopAutomaton:
        known = self._automata.get(tuple(stop))  # once: another thread may put its own there
        if known is not None:
            return known
        has_text = any(isinstance(item, str) for item in stop)
        tokens = self._token_bytes if has_text else None
        automaton = stopping.compile_stops(stop, tokens, self.config.vocab_size)
        self._automata = {tuple(stop): automaton}
        return automaton

    def _barred(
        self, options: GenerationOptions
    ) -> tuple[barring.BarredWords | None, barring.SuppressedTokens | None]:
        size, ends = self.config.vocab_size, end_token_ids(self.config)
        return (
            barring.barred_words(options.bad_words_ids, ends, size),
            barring.suppressed_tokens(options.suppress_tokens, options.begin_suppress_tokens, size),
        )

    def collate(
        self, examples: list[TokenizedExample], planned: PlannedBatch
    ) -> tuple[Batch, np.ndarray]:
        """A batch, and which places of it are taken."""
        targets = max((len(target) for one in examples for target in one.targets), default=0)
        shape = dataclasses.replace(
            planned.shape,
            prompts=planned.parts * planned.shape.prompts,
            target_tokens=planned.shape.target_tokens if targets else 1,
        )
        batch = collate(
            examples,
            shape,
            pad_token_id=self.config.pad_token_id,
            decoder_start_token_id=self.config.decoder_start_token_id,
        )
        counts = np.zeros(batch.prompts.shape[0], np.int32)
        counts[: len(examples)] = [len(example.prompts) for example in examples]
        return batch, np.arange(batch.prompts.shape[1]) < counts[:, None]

    def job(
        self,
        work: Work,
        planned: PlannedBatch,
        controls: Controls,
        options: GenerationOptions,
        **how: Any,
    ) -> Job:
        """The batch with its tables. how: further fields of `Job`."""
        indices = planned.examples
        batch, active = self.collate([work.examples[i] for i in indices], planned)
        roots = keys = None
        if work.roots is not None:
            roots = np.full(active.shape, constraints.UNCONSTRAINED, np.int32)
            roots[active] = [root for i in indices for root in work.roots[i]]
        if work.keys is not None:
            keys = np.zeros((*active.shape, 2), np.uint32)
            keys[active] = [key for i in indices for key in work.keys[i]]
        return Job(
            batch,
            active,
            planned.shape,
            options.strategy(),
            controls,
            int(controls.max_new_tokens),
            returned=1 if options.do_sample else options.num_return_sequences,
            roots=roots,
            keys=keys,
            **how,
        )


def _one_each(rows: list[list[Any]] | None) -> Any:
    """What belongs to a prompt, where each prompt has an example of its own."""
    return None if rows is None else [[item] for row in rows for item in row]


def _spellings(
    names: tuple[Any, ...], encoded: list[Sequence[int]], where: str
) -> dict[tuple[int, ...], str]:
    """The texts of one list by their tokens, which may decode to something a little else."""
    spelled: dict[tuple[int, ...], str] = {}
    for name, tokens in zip(names, encoded, strict=True):
        if not isinstance(name, str):
            continue
        body = tuple(tokens[:-1])
        if spelled.setdefault(body, name) != name:
            raise UserError(
                f"{where}: {spelled[body]!r} and {name!r} are the same tokens to this "
                "tokenizer, and cannot be told apart: keep one of them"
            )
    return spelled


def _sampling_keys(seed: int, example: TokenizedExample, copies: int) -> list[tuple[int, int]]:
    """A key for each output of an example, from seed, document, prompt and copy alone."""
    document = hashlib.blake2b(np.asarray(example.document, np.int64).tobytes(), digest_size=16)
    keys = []
    for prompt in example.prompts:
        for copy in range(copies):
            digest = hashlib.blake2b(
                repr((int(seed), copy, document.hexdigest(), list(map(int, prompt)))).encode(),
                digest_size=8,
            ).digest()
            keys.append((int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")))
    return keys

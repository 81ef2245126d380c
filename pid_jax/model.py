"""`PidModel`: a model, its parameters and its tokenizer, in terms of text."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pid_jax import prompt_in_decoder
from pid_jax.checkpoints import huggingface
from pid_jax.data import tokenizing
from pid_jax.data.batching import Batch, collate, shape_of
from pid_jax.data.tokenizing import TokenizedExample
from pid_jax.decoding.greedy import greedy
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config, EncoderDecoder, Params

Text = str | Sequence[int]
"""Text, or token ids that are used as they are."""
Method = Literal["pid", "pie"]

_greedy = jax.jit(greedy, static_argnums=0, static_argnames=("max_new_tokens", "min_new_tokens"))
_score = jax.jit(prompt_in_decoder.target_log_probabilities, static_argnums=0)


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated for one prompt."""

    text: str | None
    """None where the model has no tokenizer."""
    tokens: list[int]
    """Without the prompt and without the end token."""
    score: float
    """The sum of the log-probabilities of the tokens and, if it came, of the end token."""


class PidModel:
    """An encoder-decoder that answers many prompts about one document.

    Documents and prompts are text, or lists of token ids that are used as they are. Of text,
    documents get the special tokens of the tokenizer (T5 appends `</s>`), prompts get none,
    and targets to be scored get the end token.
    """

    def __init__(self, model: EncoderDecoder, params: Params, tokenizer: Any | None = None):
        self.model = model
        self.params = params
        self.tokenizer = tokenizer

    @property
    def config(self) -> Config:
        """The architecture's configuration."""
        return self.model.config

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: DTypeLike = "float32") -> "PidModel":
        """Loads a Hugging Face directory or hub id, or a training run's working directory.

        Of a run, the best checkpoint is taken. dtype: of parameters and activations,
        "float32" or "bfloat16" (faster on GPU and TPU, slower on CPU). Raises `UserError`
        naming the file, key or tensor that does not fit.
        """
        dtype = _dtype(dtype)
        if (Path(path) / "checkpoints").is_dir() or (Path(path) / "model").is_dir():
            from pid_jax.checkpoints import orbax

            return cls(*orbax.load_model(Path(path), dtype=dtype))
        return cls(*huggingface.load(path, dtype))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a directory that transformers loads with `from_pretrained`."""
        huggingface.save(directory, self.model, self.params, self.tokenizer)

    def generate(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        max_new_tokens: int = 32,
        min_new_tokens: int = 0,
        method: Method = "pid",
        num_beams: int = 1,
        batch_size: int = 8,
        after_batch: Callable[[int, float], None] | None = None,
    ) -> list[list[Generation]]:
        """Greedily decodes every prompt of every document; `result[i][j]` answers `prompts[i][j]`.

        prompts: one list per document, of any length, none too. max_new_tokens: the end
        token counts as one. min_new_tokens: the end token cannot come before so many others.
        method: "pid" encodes each document once; "pie" encodes it once per prompt, the prompt
        before it. batch_size: documents decoded together, those of similar length, the longest
        first: if memory does not suffice, that shows at once. after_batch: called after each
        batch with its number of documents and its seconds. Results depend on neither batch
        mates nor order nor padding. Raises `UserError` for arguments that do not fit.
        """
        if num_beams != 1:
            raise UserError(f"num_beams={num_beams} is not supported; supported: 1 (greedy)")
        if max_new_tokens < 1 or not 0 <= min_new_tokens <= max_new_tokens:
            raise UserError(
                "max_new_tokens must be at least 1 and min_new_tokens between 0 and it, not "
                f"max_new_tokens={max_new_tokens} and min_new_tokens={min_new_tokens}"
            )
        examples = self._tokenize(documents, prompts)
        results: list[list[Generation]] = [[] for _ in examples]
        for indices, batch, counts in self._batches(examples, method, batch_size):
            started = time.perf_counter()
            decoded = _greedy(
                self.model,
                self.params,
                batch.documents,
                batch.document_mask,
                batch.prompts,
                batch.prompt_mask,
                np.arange(batch.prompts.shape[1]) < counts[:, None],
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
            )
            tokens, lengths, scores = jax.device_get(decoded)
            for row, index in enumerate(indices):
                for column in range(counts[row]):
                    chosen = tokens[row, column, : lengths[row, column]].tolist()
                    generation = self._generation(chosen, float(scores[row, column]))
                    results[index].append(generation)
            if after_batch is not None:
                after_batch(len(set(indices)), time.perf_counter() - started)
        return results

    def score(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        targets: Sequence[Sequence[Text]],
        method: Method = "pid",
        batch_size: int = 8,
    ) -> list[list[float]]:
        """log p(target | document, prompt) in nats, nested as the prompts are.

        The arguments are those of `generate`; targets of token ids are scored as given.
        """
        examples = self._tokenize(documents, prompts, targets)
        results: list[list[float]] = [[] for _ in examples]
        for indices, batch, counts in self._batches(examples, method, batch_size):
            scores = jax.device_get(_score(self.model, self.params, batch))
            for row, index in enumerate(indices):
                results[index].extend(scores[row, : counts[row]].tolist())
        return results

    def _generation(self, tokens: list[int], score: float) -> Generation:
        if tokens[-1:] == [self.config.eos_token_id]:
            tokens = tokens[:-1]
        text = None
        if self.tokenizer is not None:
            text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return Generation(text, tokens, score)

    def _tokenize(
        self,
        documents: Sequence[Text],
        prompts: Sequence[Sequence[Text]],
        targets: Sequence[Sequence[Text]] | None = None,
    ) -> list[TokenizedExample]:
        for name, rows in (("documents", documents), ("prompts", prompts), ("targets", targets)):
            if isinstance(rows, str):
                raise UserError(f"{name} must be a list, not one string")
            if rows is not None and len(rows) != len(documents):
                raise UserError(
                    f"{name} must hold one list per document: there are {len(documents)} "
                    f"documents and {len(rows)} lists of {name}"
                )
        # The same prompts are asked of document after document.
        encode_prompt = functools.cache(tokenizing.encode_prompt)
        encode_target = functools.cache(self._encode_target)
        encode = self._encode
        examples = []
        for i, (document, asked) in enumerate(zip(documents, prompts, strict=True)):
            wanted = [()] * len(asked) if targets is None else targets[i]
            for name, texts in (("prompts", asked), ("targets", wanted)):
                if isinstance(texts, str):
                    raise UserError(f"{name}[{i}] must be a list, one item per prompt, not text")
            if len(wanted) != len(asked):
                raise UserError(f"prompts[{i}] holds {len(asked)}, but targets[{i}] {len(wanted)}")
            example = TokenizedExample(
                str(i),
                encode(document, f"documents[{i}]", tokenizing.encode_document),
                [
                    encode(prompt, f"prompts[{i}][{j}]", encode_prompt)
                    for j, prompt in enumerate(asked)
                ],
                [
                    encode(target, f"targets[{i}][{j}]", encode_target)
                    for j, target in enumerate(wanted)
                ],
            )
            examples.append(example)
        return examples

    def _encode_target(self, tokenizer: Any, text: str) -> list[int]:
        return tokenizing.encode_target(tokenizer, text, self.config.eos_token_id)

    def _encode(
        self, text: Text, where: str, encode: Callable[[Any, str], list[int]]
    ) -> Sequence[int]:
        if isinstance(text, str):
            if self.tokenizer is None:
                raise UserError(f"{where} is text, but the model has no tokenizer: give token ids")
            return encode(self.tokenizer, text)
        for token in text:
            if not 0 <= token < self.config.vocab_size:
                raise UserError(
                    f"{where} holds the token id {token}, but ids go from 0 to "
                    f"{self.config.vocab_size - 1}"
                )
        return text

    def _batches(
        self, examples: Sequence[TokenizedExample], method: Method, batch_size: int
    ) -> Iterator[tuple[list[int], Batch, np.ndarray]]:
        """Batches of documents of similar length, for either method in the shape of `pid`.

        Yields the examples' indices, the batch, and how many prompts each row of it has.
        Under "pie" an index stands once for each of its prompts, in order.
        """
        if method not in ("pid", "pie"):
            raise UserError(f"method={method!r} is unknown; supported: 'pid', 'pie'")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        asked = [i for i, example in enumerate(examples) if example.prompts]
        by_length = sorted(asked, key=lambda i: len(examples[i].document), reverse=True)
        for start in range(0, len(by_length), batch_size):
            indices = by_length[start : start + batch_size]
            rows = [examples[i] for i in indices]
            if method == "pie":
                indices = [i for i in indices for _ in examples[i].prompts]
                rows = prompt_in_decoder.prompt_in_encoder(rows)
            batch = collate(
                rows,
                shape_of(rows),
                pad_token_id=self.config.pad_token_id,
                decoder_start_token_id=self.config.decoder_start_token_id,
            )
            counts = np.zeros(batch.prompts.shape[0], np.int32)
            counts[: len(rows)] = [len(row.prompts) for row in rows]
            yield indices, batch, counts


def _dtype(dtype: DTypeLike) -> Any:
    name = jnp.dtype(dtype).name if not isinstance(dtype, str) else dtype
    if name not in ("float32", "bfloat16"):
        raise UserError(f"dtype={name!r} is not supported; supported: 'float32', 'bfloat16'")
    return jnp.dtype(name)

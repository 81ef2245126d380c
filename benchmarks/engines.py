"""The engines under test, each as a function from token ids to token ids.

All decode greedily, suppress the end token to take exactly `new_tokens` steps, and return lists
on the host, so that the time of a call includes all of its work.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from benchmarks import weights
from benchmarks.machine import cores
from benchmarks.workloads import Questions
from pid_jax import PidModel

Answers = list[list[list[int]]]
"""Per document, per prompt, the new tokens."""
Answer = Callable[[Questions], Answers]

INSTALL = "python -m pip install -r requirements-benchmarks.txt"


class UnavailableError(Exception):
    """Raised if an engine cannot run here. The message has the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A library, a method and its configurations."""

    label: str
    method: Literal["pid", "pie"]
    open: Callable[["Loader"], dict[str, Answer]]
    """Returns its configurations by name. The fastest is timed. Raises UnavailableError."""
    precise: bool = True
    """Whether it computes in the run's dtype, so that tokens and limits are comparable."""


class Loader:
    """Loads one model size into each library, once and on the first use."""

    def __init__(self, model: str, dtype: str, cache: Path):
        self.model = model
        self.dtype = dtype
        self.cache = cache

    @functools.cached_property
    def pid_jax(self) -> PidModel:
        return PidModel.from_pretrained(weights.checkpoint(self.model, self.cache), self.dtype)

    @functools.cache  # noqa: B019 - a run has one loader
    def transformers(self, dtype: str) -> Any:
        """The model on JAX's device: the CPU with all cores, or the GPU."""
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UnavailableError(f"{error.name} is not installed: {INSTALL}") from error
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(cores())
        return (
            transformers.T5ForConditionalGeneration.from_pretrained(
                weights.checkpoint(self.model, self.cache), dtype=getattr(torch, dtype)
            )
            .eval()
            .to(torch_device())
        )

    def ctranslate2(self, compute_type: str, inter_threads: int, intra_threads: int) -> Any:
        """A translator for `inter_threads` parallel batches with `intra_threads` threads each."""
        try:
            import ctranslate2

            directory = weights.converted(self.model, self.cache)
        except ImportError as error:
            raise UnavailableError(f"{error.name} is not installed: {INSTALL}") from error
        device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
        if device is None:
            raise UnavailableError(f"CTranslate2 has no {jax.default_backend()} backend")
        if device == "cuda" and not ctranslate2.get_cuda_device_count():
            raise UnavailableError("CTranslate2 sees no GPU: its wheel needs CUDA 12's libraries")
        if compute_type not in ctranslate2.get_supported_compute_types(device):
            raise UnavailableError(f"CTranslate2 cannot compute in {compute_type} on this {device}")
        try:
            translator = ctranslate2.Translator(
                str(directory),
                device,
                compute_type=compute_type,
                inter_threads=inter_threads,
                intra_threads=intra_threads,
            )
            # Loads CUDA's libraries, which may fail.
            translator.translate_batch([["3"]], beam_size=1, max_decoding_length=1)
        except RuntimeError as error:
            raise UnavailableError(f"CTranslate2 cannot run on this {device}: {error}") from error
        return translator


def torch_device() -> str:
    """torch's name of JAX's device type. Raises UnavailableError if torch lacks the device."""
    import torch

    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend != "gpu":
        raise UnavailableError(
            f"transformers is not timed on {backend}: PyTorch has no such device"
        )
    if not torch.cuda.is_available():
        raise UnavailableError("PyTorch sees no GPU: install its CUDA build (https://pytorch.org)")
    return "cuda"


def _pid_jax(method: Literal["pid", "pie"], loader: Loader) -> dict[str, Answer]:
    model = loader.pid_jax

    def answer(questions: Questions) -> Answers:
        steps = questions.new_tokens
        generated = model.generate(
            questions.documents,
            questions.prompts,
            max_new_tokens=steps,
            min_new_tokens=steps,
            method=method,
            progress=False,
        )
        return [[generation.tokens for generation in document] for document in generated]

    return {"default": answer}


def _other_dtype(loader: Loader, dtype: str) -> str:
    """The dtype. Raises UnavailableError if it is that of the run: another engine has it."""
    if loader.dtype == dtype:
        raise UnavailableError(f"the whole run is in {dtype}")
    return dtype


def _transformers(
    method: Literal["pid", "pie"], loader: Loader, dtype: str | None = None
) -> dict[str, Answer]:
    """Configurations with PyTorch's fused attention and with plain matrix products.

    dtype: None for that of the run.
    """
    model = loader.transformers(_other_dtype(loader, dtype) if dtype else loader.dtype)
    import torch

    device = torch_device()

    def generate(new_tokens: int, skip: int, **inputs: Any) -> list[list[int]]:
        fixed = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        tokens = model.generate(**inputs, **fixed, do_sample=False, num_beams=1)
        return tokens[:, skip:].tolist()

    def prompt_in_encoder(questions: Questions) -> Answers:
        """One batch of every prompt of every document."""
        rows = torch.tensor(_prompts_and_documents(questions), device=device)
        answers = generate(questions.new_tokens, 1, input_ids=rows)
        return _by_document(questions, answers)

    def prompt_in_decoder(questions: Questions) -> Answers:
        """One document at a time, because it broadcasts one encoder output over prompts."""
        answers = []
        for document, prompts in zip(questions.documents, questions.prompts, strict=True):
            encoded = model.get_encoder()(input_ids=torch.tensor([document], device=device))
            start = model.config.decoder_start_token_id
            rows = torch.tensor([[start, *prompt] for prompt in prompts], device=device)
            answers.append(
                generate(
                    questions.new_tokens,
                    rows.shape[1],
                    encoder_outputs=encoded,
                    decoder_input_ids=rows,
                )
            )
        return answers

    answer = prompt_in_encoder if method == "pie" else prompt_in_decoder

    def configured(attention: str) -> Answer:
        def run(questions: Questions) -> Answers:
            if model.config._attn_implementation != attention:
                model.set_attn_implementation(attention)
            with torch.inference_mode():
                return answer(questions)

        return run

    return {f"{attention} attention": configured(attention) for attention in ("sdpa", "eager")}


def _ctranslate2(loader: Loader, dtype: str | None = None) -> dict[str, Answer]:
    """Configurations with all cores for one batch, and with a batch of rows per core.

    dtype: None for that of the run, "int8" or "bfloat16".
    """
    compute_type = loader.dtype
    if dtype == "int8":
        compute_type = "int8" if loader.dtype == "float32" else f"int8_{loader.dtype}"
    elif dtype is not None:
        compute_type = _other_dtype(loader, dtype)
    on_cpu = jax.default_backend() == "cpu"

    def configured(batches: int, threads: int) -> Answer:
        translator = loader.ctranslate2(compute_type, batches, threads)

        def answer(questions: Questions) -> Answers:
            rows = _prompts_and_documents(questions)
            results = translator.translate_batch(
                [[str(token) for token in row] for row in rows],
                max_batch_size=-(-len(rows) // batches),
                beam_size=1,
                max_input_length=0,  # the default cuts documents at 1,024 tokens
                max_decoding_length=questions.new_tokens,
                min_decoding_length=questions.new_tokens,
            )
            answers = [[int(token) for token in result.hypotheses[0]] for result in results]
            return _by_document(questions, answers)

        return answer

    variants = {"one batch": configured(1, cores())}
    if on_cpu and cores() > 1:
        variants[f"{cores()} batches at a time"] = configured(cores(), 1)
    return variants


def _prompts_and_documents(questions: Questions) -> list[list[int]]:
    """The encoder inputs of PiE: each prompt followed by its document."""
    return [
        [*prompt, *document]
        for document, prompts in zip(questions.documents, questions.prompts, strict=True)
        for prompt in prompts
    ]


def _by_document(questions: Questions, answers: list[list[int]]) -> Answers:
    rest = iter(answers)
    return [[next(rest) for _ in prompts] for prompts in questions.prompts]


_IN_BFLOAT16: dict[str, Any] = {"dtype": "bfloat16"}

ENGINES = {
    "transformers-pie": Engine("transformers PiE", "pie", functools.partial(_transformers, "pie")),
    "transformers-pid": Engine(
        "transformers PiD, broadcast", "pid", functools.partial(_transformers, "pid")
    ),
    "transformers-pie-bfloat16": Engine(
        "transformers PiE, bfloat16",
        "pie",
        functools.partial(_transformers, "pie", **_IN_BFLOAT16),
        precise=False,
    ),
    "transformers-pid-bfloat16": Engine(
        "transformers PiD, broadcast, bfloat16",
        "pid",
        functools.partial(_transformers, "pid", **_IN_BFLOAT16),
        precise=False,
    ),
    "ctranslate2": Engine("CTranslate2 PiE", "pie", _ctranslate2),
    "ctranslate2-bfloat16": Engine(
        "CTranslate2 PiE, bfloat16",
        "pie",
        functools.partial(_ctranslate2, **_IN_BFLOAT16),
        precise=False,
    ),
    "ctranslate2-int8": Engine(
        "CTranslate2 PiE, int8",
        "pie",
        functools.partial(_ctranslate2, dtype="int8"),
        precise=False,
    ),
    "pid_jax-pie": Engine("pid_jax PiE", "pie", functools.partial(_pid_jax, "pie")),
    "pid_jax-pid": Engine("pid_jax PiD", "pid", functools.partial(_pid_jax, "pid")),
}
REFERENCE = "pid_jax-pid"
"""The engine whose time is the unit of the ratios."""

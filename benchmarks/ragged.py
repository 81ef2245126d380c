"""Time and compilations for documents of many sizes: `python benchmarks/ragged.py --help`."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run as a script: Python put this folder on its path, where the repository should be.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import command
from benchmarks.workloads import MODELS

DESCRIPTION = """\
Times calls of `generate` for documents of 30 to 900 tokens with 5 to 30 prompts each, with random
weights: the first call, which compiles, and later calls.

  python benchmarks/ragged.py --output=runs/benchmarks

Writes OUTPUT/ragged.json: seconds, programs, and the share of padding.
"""
EPILOG = "exit status: 0; 2 an error in the command."
NEW_TOKENS = 16
SEED = 0


def parser() -> argparse.ArgumentParser:
    made = command.parser("ragged", DESCRIPTION, EPILOG)
    made.add_argument("--documents", type=command.positive, default=200, metavar="N")
    made.add_argument("--model", choices=tuple(MODELS), default="t5-small")
    command.add_repeats(made, default=3)
    return made


def questions(count: int, vocabulary: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Documents and prompts as token ids."""
    import numpy as np

    random = np.random.default_rng(SEED)

    def tokens(length: int) -> list[int]:
        drawn: list[int] = random.integers(2, vocabulary, length).tolist()
        return drawn

    documents = [tokens(length) for length in random.integers(30, 901, count)]
    prompts = [
        [tokens(length) for length in random.integers(3, 13, prompt_count)]
        for prompt_count in random.integers(5, 31, count)
    ]
    return documents, prompts


def measure(name: str, documents: int, repeats: int) -> dict[str, Any]:
    """Seconds of the first call and of later calls, and the compilations."""
    from benchmarks.weights import checkpoint
    from pid_jax.decoding.report import DecodingReport
    from pid_jax.inference.model import PidModel

    with tempfile.TemporaryDirectory() as folder:
        model = PidModel.from_pretrained(checkpoint(name, Path(folder)))
    inputs = questions(documents, model.config.vocab_size)
    calls = []
    for _ in range(1 + repeats):
        report = DecodingReport()
        started = time.perf_counter()
        model.generate(*inputs, max_new_tokens=NEW_TOKENS, progress=False, report=report)
        calls.append({"seconds": time.perf_counter() - started, **vars(report)})
        print(f"{calls[-1]['seconds']:.1f} s\n{report}", file=sys.stderr)
    compilations = model.programs.compilations
    return {
        "model": name,
        "documents": documents,
        "new_tokens": NEW_TOKENS,
        "programs": len(compilations),
        "compile_seconds": sum(one.seconds for one in compilations),
        "first_call_seconds": calls[0]["seconds"],
        "later_call_seconds": sorted(call["seconds"] for call in calls[1:]),
        "calls": calls,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    import jax

    options = parser().parse_args(arguments)
    # The measurement includes compilation, so programs of earlier processes are not reused.
    jax.config.update("jax_enable_compilation_cache", False)
    result = measure(options.model, options.documents, options.repeats)
    command.write(options.output, "ragged", {**command.origin(), **result})
    print(
        f"{result['programs']} programs, {result['compile_seconds']:.1f} s of compiling; "
        f"first call {result['first_call_seconds']:.1f} s, later calls "
        f"{', '.join(f'{seconds:.1f}' for seconds in result['later_call_seconds'])} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

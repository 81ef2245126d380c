"""Answers every prompt of a JSON-lines file: `python -m pid_jax.predict --help`."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pid_jax.atomic_file import replacing
from pid_jax.command_line import checkpoint_parser, keep_compiled_programs, user_errors
from pid_jax.errors import UserError
from pid_jax.model import Generation, PidModel
from pid_jax.tasks import jsonl

DESCRIPTION = """\
Answers every prompt of a JSON-lines file with a trained model.

Each input line is one document and what is asked of it:

  {"id": "d1", "document": "...", "subtasks": [{"id": "q1", "prompt": "..."}]}

The output holds the same lines in the same order; each subtask gains "prediction", the
generated text, and "score", the natural logarithm of that text's probability. Anything else
on a line stays as it is. The output file appears only once it is complete.
"""


def answered(line: Mapping[str, Any], answers: Sequence[Generation]) -> dict[str, Any]:
    """A JSON line's object with "prediction" and "score" in each subtask, all else as it was."""
    subtasks = [
        {**subtask, "prediction": answer.text, "score": answer.score}
        for subtask, answer in zip(line["subtasks"], answers, strict=True)
    ]
    return {**line, "subtasks": subtasks}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = checkpoint_parser("python -m pid_jax.predict", DESCRIPTION)
    parser.add_argument(
        "--input", required=True, metavar="FILE", type=Path, help="JSON lines to read"
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", type=Path, help="JSON lines to write"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        default=32,
        help="longest answer, in tokens (default: 32)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        default=8,
        help="documents decoded together (default: 8)",
    )
    parser.add_argument(
        "--method",
        choices=("pid", "pie"),
        help="prompt-in-decoder or prompt-in-encoder (default: as the run was trained, or pid)",
    )
    options = parser.parse_args(arguments)
    with user_errors():
        _predict_file(options)


def _predict_file(options: argparse.Namespace) -> None:
    # The lines are checked before the model is loaded: a mistake in them shows at once.
    read = list(jsonl.read_lines(options.input))
    examples = [example for _, example in read]
    keep_compiled_programs()
    model = PidModel.from_pretrained(options.checkpoint)
    from pid_jax.checkpoints import orbax  # slow to import, and --help should not wait for it

    method = options.method or orbax.trained_method(options.checkpoint)
    if model.tokenizer is None:
        raise UserError(
            f"{options.checkpoint} has no tokenizer, so it cannot read text: put tokenizer.json "
            "or spiece.model there, or use PidModel.generate with token ids"
        )
    done = 0

    def report(documents: int, seconds: float) -> None:
        nonlocal done
        done += documents
        print(f"{done:,} of {len(examples):,} documents", file=sys.stderr)

    started = time.perf_counter()
    # Around the generation: an output that cannot be written shows before it, not after.
    with replacing(options.output) as path:
        answers = model.generate(
            [example.document for example in examples],
            [[subtask.prompt for subtask in example.subtasks] for example in examples],
            batch_size=options.batch_size,
            after_batch=report,
            max_new_tokens=options.max_new_tokens,
            method=method,
        )
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for (text, _), line_answers in zip(read, answers, strict=True):
                line = answered(json.loads(text), line_answers)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    seconds = time.perf_counter() - started
    print(
        f"{options.output}: {len(examples)} documents, {sum(map(len, answers))} prompts, "
        f"{seconds:.1f} s ({method})"
    )


if __name__ == "__main__":
    main()

"""`pid-jax predict`: answers every prompt of a JSON-lines file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pid_jax.command_line import (
    add_checkpoint,
    add_fields,
    add_mesh,
    add_weights,
    make_parser,
    with_flags,
)
from pid_jax.commands import many_processes

DESCRIPTION = """\
Answers every prompt of a JSON-lines file with a trained model.

Each input line is one document with its prompts:

  {"id": "d1", "document": "...", "subtasks": [{"id": "q1", "prompt": "..."}]}

The output has the same lines in the same order. Each subtask gains "prediction", the
generated text, "score", the natural logarithm of that text's probability, and "finish_reason",
"stop" for an answer that ended or "length" for one cut at --max-new-tokens; with
--num-return-sequences "alternatives", a list of such answers; with --logprobs=N "logprobs", for
each token {"token": id, "logprob": x, "top": [[id, x], ...]} with the N likeliest. Anything else
on a line stays as it is. A subtask may have "allowed": ["north", "south"]: its prediction is then
one of these texts, and "score" null where the model rules all of them out.
Memory use does not depend on the size of the file. The input may be packed by gzip.

The output file appears only once it is complete. Until then the answers are in OUTPUT.partial:
if the command is stopped or killed, the same command goes on from there. It refuses to where
the documents answered so far, the model or the options that determine the answers have changed.
"""

EXIT_STATUS = (
    """\
exit status:
  0    every line was answered
  2    stopped by an error; the answers until then are in OUTPUT.partial
  3    every good line was answered, and bad lines were left out (--on-error=skip)
  130  stopped by Ctrl-C; the answers until then are in OUTPUT.partial

"""
    + many_processes.EPILOG
)
LEFT_OUT, INTERRUPTED = 3, 130


def main(argv: Sequence[str] | None = None, *, program: str = "pid-jax predict") -> None:
    """Answers a file; exits with the status that the help lists."""
    options = make_predict_parser(program).parse_args(argv)

    # After the arguments are read: importing JAX takes seconds that --help should not.
    from pid_jax.decoding.options import GenerationOptions
    from pid_jax.inference.generation_defaults import check_alone

    fields = [field.name for field in with_flags(GenerationOptions)]
    values = {name: getattr(options, name) for name in fields}
    generation = {name: value for name, value in values.items() if value is not None}
    try:
        with many_processes.all_processes(options):
            for name, value in generation.items():
                check_alone(name, value)
            from pid_jax.checkpoints import orbax  # slow to import: after options are checked
            from pid_jax.distributed import service
            from pid_jax.prediction import Settings, predict_file

            generation["method"] = options.method or orbax.trained_method(options.checkpoint)
            summary = predict_file(
                Settings(
                    checkpoint=options.checkpoint,
                    input=options.input,
                    output=options.output,
                    generation=generation,
                    dtype=options.dtype,
                    weights=options.weights,
                    mesh=options.mesh,
                    batch_tokens=options.batch_tokens,
                    batch_size=options.batch_size,
                    write_every=options.write_every,
                    skip_bad_lines=options.on_error == "skip",
                    restart=options.restart,
                )
            )
            if service.is_first():
                print(summary, file=sys.stderr if str(options.output) == "-" else sys.stdout)
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "stopped", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    if summary.counts.bad_lines:
        raise SystemExit(LEFT_OUT)


def make_predict_parser(program: str) -> argparse.ArgumentParser:
    """The parser of the command, with a flag for each field of `GenerationOptions`."""
    from pid_jax.decoding.options import GenerationOptions

    parser = make_parser(program, DESCRIPTION, epilog=EXIT_STATUS, allow_abbrev=True)
    add_checkpoint(parser, required=True)
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        type=Path,
        help="JSON lines to read; - for standard input",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        type=Path,
        help="JSON lines to write; - for standard output, which nothing can resume",
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens of documents, prompts and answers, padding included, in one batch "
        "(default: 4096 on a CPU, 65536 elsewhere)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="most documents in one batch (default: no limit but --batch-tokens)",
    )
    parser.add_argument(
        "--write-every",
        type=int,
        metavar="N",
        default=512,
        help="documents answered between two writes, times the number of processes: more sort "
        "better into batches of similar length, fewer are answered again after a kill "
        "(default: 512)",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a line that cannot be read: stop (default), or report its number and leave it out",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="drop the answers of a stopped run and start afresh",
    )
    answers = parser.add_argument_group("how answers are chosen")
    answers.add_argument(
        "--method",
        choices=("pid", "pie"),
        help="prompt-in-decoder or prompt-in-encoder (default: as the run was trained, or pid)",
    )
    answers.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "auto"),
        default="float32",
        help="of parameters and activations: bfloat16 takes half the memory, and less time on GPU "
        "and TPU; auto is that of the checkpoint (default: float32)",
    )
    add_weights(answers)
    add_mesh(answers)
    add_fields(answers, GenerationOptions, otherwise="the checkpoint's, or ")
    many_processes.add_flags(parser)
    return parser

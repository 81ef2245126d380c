"""`pid-jax compile-ahead`: compiles a program for an accelerator that this machine lacks."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pid_jax.command_line import add_weights, make_parser, user_errors

DESCRIPTION = """\
Compiles a program for a TPU or a GPU without having one, and prints what the compiler made of it:
memory against the chip's, FLOPs, kernels or estimated cycles by part of the model, collectives, an
estimate of time, and whether it fits. All figures are estimates of the compiler.

  PROGRAM --target=v5e --program=decode --architecture=t5-base \\
      --documents=8 --document-tokens=512 --prompts=30 --prompt-tokens=9 --max-new-tokens=16
  PROGRAM --target=h100 --program=train --config=multiwoz:21,t5_base --json=step.json
  PROGRAM --target=v5p:4x4x4 --program=train --architecture=t5-11b --fsdp=16 --tensor=4 --data=1

It compiles the programs that pid_jax runs, from shapes alone: no weights, no data, no accelerator.
The compilers come with the packages in requirements-targets.txt: jax[cuda12] for h100, libtpu for
TPUs. `make targets` installs them into an environment of its own.

Programs:
  train      a whole training step
  evaluate   a batch of teacher-forced evaluation during training
  prefill    the encoder, and the decoder on all prompts, up to the first token
  decode     one decode step: the body of the loop. What runs around the loop is listed beside it
  score      the encoder, and the log probabilities of targets
"""
EPILOG = """\
exit status: 0 compiled and fits; 1 compiled, but does not fit; 2 a mistake in the command or the
config, or a compiler that is not installed.
"""
DOES_NOT_FIT = 1


def main(argv: Sequence[str] | None = None, *, program: str = "pid-jax compile-ahead") -> None:
    """Compiles; exits with the status that the help lists."""
    from pid_jax.compile_ahead import targets  # without JAX

    options, overrides = _parser(program).parse_known_args(argv)
    with user_errors():
        target = targets.parse(options.target)
        targets.prepare_environment()

        from pid_jax.atomic_file import replacing
        from pid_jax.compile_ahead import report
        from pid_jax.compile_ahead.compilation import compile_request
        from pid_jax.compile_ahead.requests import ModelSource, request_of
        from pid_jax.errors import UserError

        for override in overrides:
            if not override.startswith("--config."):
                raise UserError(f"unexpected argument {override!r}")
        request = request_of(
            target,
            options.program,
            ModelSource(options.config, overrides, options.checkpoint, options.architecture),
            sizes={name: getattr(options, name) for name in _SIZES},
            mesh={name: getattr(options, name) for name in _MESH},
            method=options.method,
            dtype=options.dtype,
            weights=options.weights,
        )
        print(f"compiling {options.program} for {target} ...", file=sys.stderr)
        compiled = compile_request(request, options.dump)
        if options.json is not None:
            with replacing(options.json) as file:
                text = json.dumps(report.to_json(compiled), indent=2) + "\n"
                file.write_text(text, encoding="utf-8")
        print(report.table(compiled))
    if not report.fits(compiled):
        sys.exit(DOES_NOT_FIT)


_SIZES = {
    "documents": "documents in a batch",
    "document_tokens": "tokens of each document",
    "prompts": "prompts of each document",
    "prompt_tokens": "tokens of each prompt, the decoder's start token included",
    "target_tokens": "tokens of each target or output",
    "rows": "with a config that packs prompts: decoder rows of each document, as a run logs them "
    "(default: enough for all prompts at full length)",
    "row_tokens": "tokens of such a row",
}
_MESH = {
    "data": "copies of the parameters, each with a share of the documents",
    "fsdp": "shares of the documents that also split the parameters",
    "tensor": "parts of each matrix product",
}


def _parser(program: str) -> argparse.ArgumentParser:
    parser = make_parser(
        program,
        DESCRIPTION,
        usage="--target=TARGET --program=NAME (--architecture=NAME | --checkpoint=PATH | "
        "--config=FILE)\n    [--SIZE=N ...] [--method=pid|pie] [--json=FILE] [--dump=DIRECTORY] "
        "[--config.KEY=VALUE ...]",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--target",
        required=True,
        help="h100, v4, v5e, v5p or v6e; more than one chip with a topology: v5e:2x4, h100:8",
    )
    parser.add_argument(
        "--program",
        required=True,
        choices=("train", "evaluate", "prefill", "decode", "score"),
        help="what to compile, see above",
    )
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--architecture",
        metavar="NAME",
        help="the sizes of a published checkpoint: t5-base, t5-large, t5-3b, t5-11b, flan-t5-xl, "
        "t5gemma-2b-2b and others",
    )
    model.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="a config.json, the directory of a checkpoint, or a training workdir",
    )
    model.add_argument(
        "--config",
        metavar="FILE",
        help="a training config: its model, sizes, optimizer and mesh",
    )
    model.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of activations, and in inference of parameters (default: bfloat16)",
    )
    add_weights(model)
    model.add_argument(
        "--method", choices=("pid", "pie"), help="(default: that of the config, or pid)"
    )
    sizes = parser.add_argument_group(
        "sizes", "The default is the largest batch of the config, or 8 x 512, 30 prompts of 9, 16."
    )
    for name, text in _SIZES.items():
        flags = [f"--{name.replace('_', '-')}"]
        if name == "target_tokens":
            flags.append("--max-new-tokens")
        sizes.add_argument(*flags, dest=name, type=int, metavar="N", help=text)
    mesh = parser.add_argument_group(
        "mesh", "For a target of several chips. -1: all that are left."
    )
    for name, text in _MESH.items():
        mesh.add_argument(f"--{name}", type=int, metavar="N", help=text)
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", type=Path, help="also write every figure here")
    output.add_argument(
        "--dump", metavar="DIRECTORY", type=Path, help="write the optimised programs here"
    )
    return parser

"""Scores a checkpoint on a task: `python eval.py --help`."""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

DESCRIPTION = """\
Scores a checkpoint on a task: generates the answer to every prompt, and prints the scores with
the version of the data and the rules that they follow.

  python eval.py --config=configs/quickstart.py --checkpoint=WORKDIR --output=OUTPUT
  python eval.py --config=configs/multiwoz21_scratch.py --checkpoint=WORKDIR --output=OUTPUT \\
      --config.data.task=multiwoz24 --config.data.path=mwz2.4.zip --limit=200

Writes OUTPUT/metrics.json (scores, rules, speed, versions), OUTPUT/predictions.jsonl (every
document with its predictions) and OUTPUT/report.html (both for reading, in one file, with charts
and the worst examples). Any key of the config file can be overridden as shown.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python eval.py",
        usage="python eval.py --config=FILE --checkpoint=PATH --output=DIRECTORY "
        "[--split=SPLIT] [--limit=N] [--method=pid|pie] [--config.KEY=VALUE ...]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the config file that the model was trained by",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a training workdir (its best checkpoint), a Hugging Face directory or a hub id",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIRECTORY",
        type=Path,
        help="where to write; made if missing",
    )
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="score only the first N documents (dialogue turns)"
    )
    parser.add_argument(
        "--method",
        choices=("pid", "pie"),
        help="prompt-in-decoder or prompt-in-encoder (default: config.method)",
    )
    options, overrides = parser.parse_known_args(arguments)

    # After the arguments are read: importing JAX takes seconds that --help should not.
    from pid_jax.command_line import user_errors

    with user_errors():
        _evaluate(options, overrides)


def _evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from pid_jax import evaluation, scoring
    from pid_jax.atomic_file import check_writable
    from pid_jax.compilation_cache import enable_compilation_cache
    from pid_jax.errors import UserError
    from pid_jax.inference.model import PidModel
    from pid_jax.training import assembly
    from pid_jax.training import config as configuration

    config = configuration.load(options.config, overrides)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit={options.limit}: it must be at least 1")
    enable_compilation_cache()
    task = assembly.task_of(config)
    examples = list(islice(assembly.examples_of(config, options.split), options.limit))
    check_writable(options.output)  # before the work, not after it
    model = PidModel.from_pretrained(options.checkpoint, dtype=assembly.activation_dtype(config))
    own = {k: v for k, v in model.generation_defaults.items() if k != "max_new_tokens"}
    if own:
        listed = ", ".join(f"{name}={value}" for name, value in own.items())
        print(f"defaults of {options.checkpoint}: {listed}", file=sys.stderr)
    done = 0.0

    def report(documents: float, _: float) -> None:
        nonlocal done
        done += documents
        print(f"{done:,.0f} of {len(examples):,} documents", file=sys.stderr)

    result = evaluation.evaluate(
        model,
        task,
        examples,
        limits=assembly.limits(config),
        batch_size=config.evaluation.batch_size or config.data.batch_size,
        method=options.method or config.method,
        after_batch=report,
        predictions=options.output / evaluation.PREDICTIONS,
    )
    evaluation.write(
        options.output,
        result,
        {"task": task.name, "split": options.split, "checkpoint": str(options.checkpoint)},
    )
    print(f"{task.name}, {options.split}\n{scoring.table(result)}")
    print(f"Written to {options.output}: {', '.join(evaluation.FILES)}")


if __name__ == "__main__":
    main()

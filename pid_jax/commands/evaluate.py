"""`pid-jax eval`: scores a checkpoint, or predictions made elsewhere, on a task."""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pid_jax.command_line import (
    add_checkpoint,
    add_mesh,
    add_task_options,
    add_weights,
    make_parser,
    task_options,
)
from pid_jax.commands import many_processes

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pid_jax.data.examples import Example
    from pid_jax.scoring import Evaluation
    from pid_jax.tasks import Task

DESCRIPTION = """\
Scores answers on a task, and prints the scores with the version of the data and the rules that
they follow. The answers are those of a checkpoint to every prompt, or the predictions in a file:

  PROGRAM --config=configs/quickstart.py --checkpoint=WORKDIR --output=OUTPUT
  PROGRAM --config=multiwoz:24,scratch --checkpoint=WORKDIR --output=OUTPUT \\
      --config.data.path=mwz2.4.zip --limit=200
  PROGRAM --task=multiwoz24 --path=mwz2.4.zip --predictions=mine.jsonl --output=OUTPUT

Writes OUTPUT/metrics.json (scores, rules, versions, and with a checkpoint the speed),
OUTPUT/predictions.jsonl (every document with its predictions) and OUTPUT/report.html (both for
reading, in one file, with charts and the worst examples).

The config file defines the data, and the command line overrides any of its keys as shown. Without
--config the training run in WORKDIR defines them. --task, --path and --option are short for
--config.data.task, --config.data.path and --config.data.options.NAME. The path may be a data set
that `pid-jax prepare` made.

Each line of a predictions file has the predictions of one document, under the ids of the task:

  {"id": "MUL0003.json:0", "subtasks": [{"id": "hotel-area", "prediction": "north"}, ...]}

The lines may be in any order. A subtask may have a "score", the natural logarithm of its
prediction's probability. Other keys are ignored, so that OUTPUT/predictions.jsonl and the output of
`pid-jax predict` can be scored, too. Every subtask of the split needs its prediction.
"""


def main(argv: Sequence[str] | None = None, *, program: str = "pid-jax eval") -> None:
    """Scores; exits with status 2 after a mistake in the command, the config or the data."""
    options, overrides = _parser(program).parse_known_args(argv)
    with many_processes.all_processes(options):
        _evaluate(options, overrides)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = make_parser(
        program,
        DESCRIPTION,
        usage="(--checkpoint=PATH | --predictions=FILE) [--config=FILE | --task=NAME] [--path=PATH]"
        "\n    [--option=NAME=VALUE ...] [--output=DIRECTORY] [--split=SPLIT]"
        "\n    [--limit=N] [--evenly-spaced]"
        "\n    [--method=pid|pie] [--weights=int8] [--mesh=AXIS=N] [--config.KEY=VALUE ...]"
        + many_processes.USAGE,
        epilog=many_processes.EPILOG,
    )
    answers = parser.add_mutually_exclusive_group(required=True)
    add_checkpoint(answers)
    answers.add_argument(
        "--predictions", metavar="FILE", type=Path, help="JSON lines of predictions to score"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the config file of the training run, or a name such as multiwoz:21,t5_base",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="a task of pid_jax.tasks, your own as module:Class, or a part of config.data.mixture",
    )
    parser.add_argument(
        "--path", metavar="PATH", help="the files as they were downloaded, or a prepared data set"
    )
    add_task_options(parser)
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="score only the first N documents (dialogue turns)"
    )
    parser.add_argument(
        "--evenly-spaced",
        action="store_true",
        help="with --limit: N documents evenly spaced over the split, as training validates on",
    )
    parser.add_argument(
        "--method",
        choices=("pid", "pie"),
        help="prompt-in-decoder or prompt-in-encoder, with --checkpoint (default: config.method)",
    )
    add_weights(parser)
    add_mesh(parser)
    parser.add_argument(
        "--output",
        metavar="DIRECTORY",
        type=Path,
        help="where to write; made if missing; needed with --checkpoint (default: only print)",
    )
    many_processes.add_flags(parser)
    return parser


def _evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    # After the arguments are read: importing JAX takes seconds that --help should not.
    from pid_jax import evaluation, scoring
    from pid_jax.atomic_file import check_writable
    from pid_jax.distributed import service
    from pid_jax.errors import UserError
    from pid_jax.training import assembly

    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit={options.limit}: it must be at least 1")
    if options.checkpoint is not None and options.output is None:
        raise UserError("--checkpoint needs --output=DIRECTORY for its answers and scores")
    if options.predictions is not None and options.method is not None:
        raise UserError(f"--method={options.method} needs --checkpoint: predictions have no method")
    if options.predictions is not None and options.weights is not None:
        raise UserError(
            f"--weights={options.weights} needs --checkpoint: predictions have no weights"
        )
    if options.predictions is not None and options.mesh is not None:
        raise UserError("--mesh needs --checkpoint: predictions have no parameters")
    config = _config(options, overrides)
    task = assembly.task_of(config)
    if options.evenly_spaced:
        examples = assembly.read_examples(config, options.split)
        examples = list(assembly.evenly_spaced(examples, options.limit or 0))
    else:
        examples = list(islice(assembly.examples_of(config, options.split), options.limit))
    evaluation.check_any(examples, task)
    if options.output is not None and service.is_first():
        check_writable(options.output)  # before the work, not after it
    if options.checkpoint is not None:
        result = _of_checkpoint(options, config, task, examples)
        source = {"checkpoint": str(options.checkpoint)}
        if options.weights is not None:
            source["weights"] = options.weights
    else:
        answers = evaluation.read_predictions(options.predictions, examples)
        result = evaluation.scored(task, examples, answers)
        source = {"predictions": str(options.predictions)}
    if not service.is_first():
        return
    if options.output is not None:
        about = {"task": task.name, "split": options.split, **source}
        evaluation.write(options.output, result, about)
    print(f"{task.name}, {options.split}\n{scoring.table(result)}")
    if options.output is not None:
        print(f"Written to {options.output}: {', '.join(evaluation.FILES)}")


def _config(options: argparse.Namespace, overrides: Sequence[str]) -> "ConfigDict":
    """The configuration that the flags describe: of a file, of a run, or the defaults."""
    from ml_collections import ConfigDict

    from pid_jax.checkpoints import contents
    from pid_jax.errors import UserError
    from pid_jax.training import config as configuration
    from pid_jax.training import mixture

    if options.config is not None:
        config = configuration.load(options.config, overrides)
    elif options.checkpoint is not None and (run := contents.run_of(options.checkpoint)):
        config = configuration.of_run(run.workdir, overrides)
    elif options.checkpoint is not None:
        raise UserError(
            f"--checkpoint={options.checkpoint} is no training run, which would have a "
            "configuration: name one with --config=FILE. It says how many tokens texts are cut to"
        )
    elif options.task is not None:
        config = configuration.with_overrides(configuration.default(), overrides, "the defaults")
    else:
        raise UserError("--predictions needs --task=NAME or --config=FILE: what do they answer?")
    if config.data.mixture and (options.task is None or options.task in config.data.mixture):
        config = mixture.part(config, options.task).config
        options.task = None
    task_args = {**config.data.options.to_dict(), **task_options(options.option)}
    with config.unlocked():
        config.data.mixture = ConfigDict()
        config.data.task = options.task or config.data.task
        config.data.path = options.path or config.data.path
        config.data.options = ConfigDict(task_args)
    return config


def _of_checkpoint(
    options: argparse.Namespace,
    config: "ConfigDict",
    task: "Task",
    examples: "Sequence[Example]",
) -> "Evaluation":
    from pid_jax import evaluation
    from pid_jax.checkpoints.agreed import agreed
    from pid_jax.compilation_cache import enable_compilation_cache
    from pid_jax.distributed import service
    from pid_jax.inference.model import PidModel
    from pid_jax.training import assembly

    enable_compilation_cache()
    model = PidModel.from_pretrained(
        agreed(options.checkpoint),
        dtype=assembly.activation_dtype(config),
        weights=options.weights,
        mesh=options.mesh,
    )
    own = {k: v for k, v in model.generation_defaults.items() if k != "max_new_tokens"}
    if own and service.is_first():
        listed = ", ".join(f"{name}={value}" for name, value in own.items())
        print(f"defaults of {options.checkpoint}: {listed}", file=sys.stderr)
    done = 0.0

    def report(documents: float, _: float) -> None:
        nonlocal done
        done = min(done + documents, len(examples))
        if service.is_first():
            print(f"{done:,.0f} of {len(examples):,} documents", file=sys.stderr)

    return evaluation.evaluate(
        model,
        task,
        examples,
        limits=assembly.limits(config),
        batch_size=config.evaluation.batch_size or config.data.batch_size,
        method=options.method or config.method,
        after_batch=report,
        predictions=options.output / evaluation.PREDICTIONS,
        processes=service.count() > 1,
    )

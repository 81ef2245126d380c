"""`pid-jax prepare`: converts a task's source to a data set with random access."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pid_jax.command_line import add_task_options, make_parser, task_options, user_errors

DESCRIPTION = """\
Reads a task's source once, checks it from end to end, and writes its examples as a data set of
tensorflow_datasets (ArrayRecord; TensorFlow is not needed), to which training and evaluation have
random access:

  PROGRAM --task=multiwoz24 --path=MULTIWOZ2.4.zip --data-dir=prepared
  pid-jax train --config=multiwoz:24,scratch --workdir=runs/multiwoz24 \\
      --config.data.path=prepared

The data set is DATA_DIR/TASK/VERSION. A version appears once it is complete and on disk, and never
changes. Another source, other options or a reader of pid_jax that reads more of it make the next
version. A version of the same source and options is checked and stays. Stopped or killed, the same
command starts over. Splits that the source lacks are named and left out.

With --config it tokenizes the training and validation data of a run instead, so that the run starts
at once:

  PROGRAM --config=multiwoz:24,scratch --config.data.path=prepared --config.data.cache=tokens
  pid-jax train --config=multiwoz:24,scratch --config.data.path=prepared \\
      --config.data.cache=tokens --config.data.tokens=disk --workdir=runs/multiwoz24
"""
EXIT_STATUS = """\
exit status: 0 the data set is there; 2 a mistake in the command or the data; 130 stopped by Ctrl-C.
"""


def main(argv: Sequence[str] | None = None, *, program: str = "pid-jax prepare") -> None:
    """Prepares a data set; exits with the status that the help lists."""
    from pid_jax import tasks

    parser = make_parser(
        program,
        DESCRIPTION,
        usage="--task=NAME [--path=PATH] --data-dir=DIRECTORY [--split=SPLIT ...]"
        " [--option=NAME=VALUE ...]\n    or --config=FILE [--config.KEY=VALUE ...]",
        epilog=EXIT_STATUS,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="tokenize the data of this config file, or of its name"
    )
    parser.add_argument("--task", help=f"one of {', '.join(tasks.names())}, or your own")
    parser.add_argument(
        "--path",
        "--source",
        metavar="PATH",
        help="the files as they were downloaded, if the task reads any",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIRECTORY",
        type=Path,
        help="directory of data sets; made if missing",
    )
    parser.add_argument(
        "--split",
        action="append",
        choices=tasks.SPLITS,
        help="only this split, which must be there; may be repeated",
    )
    add_task_options(parser)
    options, overrides = parser.parse_known_args(argv)
    required = {"--task": options.task, "--data-dir": options.data_dir}
    if options.config is None:
        if overrides:
            parser.error(f"unrecognized arguments: {' '.join(overrides)}")
        if missing := [name for name, value in required.items() if value is None]:
            parser.error(f"the following arguments are required: {', '.join(missing)}, or --config")
    elif given := [name for name, value in required.items() if value is not None]:
        parser.error(f"not with --config, which has the task: {', '.join(given)}")

    from pid_jax.data.prepare import prepare

    log = logging.getLogger("pid_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False  # absl, imported on the way, would print the lines again
    with user_errors():
        try:
            if options.config is not None:
                _tokenize(options.config, overrides)
                return
            data = prepare(
                options.task,
                options.path,
                options.data_dir,
                options=task_options(options.option),
                splits=options.split,
            )
        except KeyboardInterrupt:
            print("stopped: nothing was written", file=sys.stderr)
            sys.exit(130)
    print(f"{data.directory}: {', '.join(data.splits)}")


def _tokenize(config_file: str, overrides: Sequence[str]) -> None:
    from pid_jax.training import config as configuration
    from pid_jax.training.tokens_ahead import tokenize_ahead

    for tokens in tokenize_ahead(configuration.load(config_file, overrides)):
        print(f"{tokens.directory}: {len(tokens):,} examples")

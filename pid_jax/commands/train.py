"""`pid-jax train`: trains a model as a config file says."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pid_jax.command_line import make_parser
from pid_jax.commands import many_processes

DESCRIPTION = """\
Trains a prompt-in-decoder model. A config file defines the run. The command line overrides any of
its keys:

  PROGRAM --config=configs/quickstart.py --workdir=runs/quickstart
  PROGRAM --config=configs/multiwoz.py:21,scratch --workdir=runs/multiwoz \\
      --config.data.path=mwz2.1.zip --config.train.steps=300

A config of this project also goes by its name, from any folder: --config=multiwoz:21,scratch.
pid_jax/training/defaults.py explains every key.

The same command, run again, goes on from the last checkpoint in WORKDIR, or from the last intact
one if files are damaged. SIGTERM and Ctrl-C save first. WORKDIR then has checkpoints/,
metrics.jsonl, TensorBoard events and everything that evaluation, prediction and export need. A run
whose data has changed is refused without --other-data.
"""
EPILOG = (
    """\
exit status: 0 trained; 1 the loss became NaN or infinite; 2 a mistake in the command, the config
or the data; 128 + signal number after a signal (130 for Ctrl-C, 143 for SIGTERM).

"""
    + many_processes.EPILOG
)


def main(argv: Sequence[str] | None = None, *, program: str = "pid-jax train") -> None:
    """Trains; exits with the status that the help lists."""
    parser = make_parser(
        program,
        DESCRIPTION,
        usage="--config=FILE --workdir=DIRECTORY [--other-data] [--config.KEY=VALUE ...]"
        + many_processes.USAGE,
        epilog=EPILOG,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a Python file with get_config(), or a name such as multiwoz:21,t5_base",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIRECTORY",
        type=Path,
        help="directory of checkpoints and metrics; made if missing",
    )
    parser.add_argument(
        "--other-data",
        action="store_true",
        help="go on with a run although its data, or a file in WORKDIR/model, has changed",
    )
    many_processes.add_flags(parser)
    options, overrides = parser.parse_known_args(argv)

    # After the arguments are read: importing JAX takes seconds that --help should not.
    from pid_jax.compilation_cache import enable_compilation_cache
    from pid_jax.distributed import service
    from pid_jax.training import config as configuration
    from pid_jax.training import loop
    from pid_jax.training.stop_signals import Interrupted

    log = logging.getLogger("pid_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.propagate = False  # absl, imported on the way, prints the root logger's lines in its form
    # Orbax logs there what it raises, too: tracebacks of a full disk, say.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with many_processes.all_processes(options):
        if not service.is_first():
            log.setLevel(logging.ERROR)  # the first process writes the log
        config = configuration.load(options.config, overrides)
        enable_compilation_cache()
        try:
            loop.train(config, options.workdir, other_data=options.other_data)
        except loop.Diverged as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(stop.exit_status)
        except KeyboardInterrupt:
            # Before the first or after the last step: there is nothing to save.
            sys.exit(130)

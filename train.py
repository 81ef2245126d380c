"""Trains a model as a config file says: `python train.py --help`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
Trains a prompt-in-decoder model. Everything about the run stands in a config file; any of its
keys can be overridden on the command line:

  python train.py --config=configs/quickstart.py --workdir=runs/quickstart
  python train.py --config=configs/multiwoz21_scratch.py --workdir=runs/multiwoz \\
      --config.data.path=mwz2.1.zip --config.train.steps=300

pid_jax/training/config.py explains every key.

The same command run again goes on from the last checkpoint in WORKDIR. SIGTERM and Ctrl-C save
first. WORKDIR then holds checkpoints/, metrics.jsonl, TensorBoard events and all that
eval.py, pid_jax.predict and pid_jax.export need. A run whose data has changed is not taken up
again, unless with --other-data.
"""
EPILOG = """\
exit status: 0 trained; 1 the loss became NaN or infinite; 2 a mistake in the command, the config
or the data; 128 + signal number after a signal (130 for Ctrl-C, 143 for SIGTERM).
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python train.py",
        usage="python train.py --config=FILE --workdir=DIRECTORY [--other-data] "
        "[--config.KEY=VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a Python file with get_config()"
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIRECTORY",
        type=Path,
        help="where checkpoints and metrics go; made if missing",
    )
    parser.add_argument(
        "--other-data",
        action="store_true",
        help="go on with a run although its data is not what it has read so far",
    )
    options, overrides = parser.parse_known_args(arguments)

    # After the arguments are read: importing JAX takes seconds that --help should not.
    from pid_jax.command_line import user_errors
    from pid_jax.compilation_cache import enable_compilation_cache
    from pid_jax.training import config as configuration
    from pid_jax.training import loop
    from pid_jax.training.stop_signals import Interrupted

    log = logging.getLogger("pid_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.propagate = (
        False  # absl, imported on the way, writes the root logger's lines in its own form
    )
    # Orbax writes there what it raises, too: tracebacks of a full disk, say.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with user_errors():
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


if __name__ == "__main__":
    main()

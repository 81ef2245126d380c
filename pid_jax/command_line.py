"""What the command lines share: options, mistakes in one sentence, compiled programs kept."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pid_jax.errors import UserError

# transformers is here for its tokenizers: its advice to install PyTorch would mislead.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def checkpoint_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with --checkpoint: whatever `PidModel.from_pretrained` loads."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a training workdir (its best checkpoint), a Hugging Face directory or a hub id",
    )
    return parser


@contextmanager
def user_errors() -> Iterator[None]:
    """Prints a UserError as `error: ...` on standard error and exits with status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache: a later process does not compile again.

    In $XDG_CACHE_HOME/pid_jax/jax (by default ~/.cache/pid_jax/jax), unless
    JAX_COMPILATION_CACHE_DIR is set: JAX itself reads that, and "" turns the cache off. Returns
    the directory, or None if this function set none.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    import jax  # not before it is needed: --help and a mistaken option should not wait for it

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = home / "pid_jax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory

"""Common options and output of the benchmark commands."""

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def parser(script: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser for `benchmarks/SCRIPT.py`, with --output."""
    made = argparse.ArgumentParser(
        prog=f"python benchmarks/{script}.py",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--output",
        type=Path,
        default=Path("runs/benchmarks"),
        metavar="DIR",
        help="default: runs/benchmarks",
    )
    return made


def positive(text: str) -> int:
    """The type of an option that is a positive integer."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def add_engines(to: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Adds --engines, those of `names` that are timed."""
    to.add_argument(
        "--engines",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help=f"default: {' '.join(names)}",
    )


def add_repeats(to: argparse.ArgumentParser, default: int) -> None:
    """Adds --repeats, the number of timed runs of each engine."""
    to.add_argument(
        "--repeats",
        type=positive,
        default=default,
        metavar="N",
        help=f"runs of each (default: {default})",
    )


def origin() -> dict[str, Any]:
    """Date, commit and machine of a measurement."""
    from benchmarks import machine

    return {
        "schema": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine.commit(),
        "machine": machine.describe(),
    }


def write(directory: Path, name: str, result: Mapping[str, Any]) -> None:
    """Writes DIRECTORY/NAME.json atomically."""
    from pid_jax.atomic_file import replacing

    with replacing(directory / f"{name}.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

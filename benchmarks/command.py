"""What the benchmarks' commands have in common: their options, and the JSON that they write."""

import argparse
import json
from collections.abc import Mapping
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
    """The type of an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def add_repeats(to: argparse.ArgumentParser, default: int) -> None:
    """How often each engine is timed."""
    to.add_argument(
        "--repeats",
        type=positive,
        default=default,
        metavar="N",
        help=f"runs of each (default: {default})",
    )


def origin() -> dict[str, Any]:
    """When, of which commit and on which machine something was measured."""
    from benchmarks import machine

    return {
        "schema": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine.commit(),
        "machine": machine.describe(),
    }


def write(directory: Path, name: str, result: Mapping[str, Any]) -> None:
    """Writes DIRECTORY/NAME.json, whole or not at all."""
    from pid_jax.atomic_file import replacing

    with replacing(directory / f"{name}.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

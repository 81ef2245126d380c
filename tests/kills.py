"""Kills a training run at random instants and compares the end with a run that nobody killed.

  python -m tests.kills --kills 30 --seed 0

Every second step is saved, so that most kills meet a save. The command prints the kills before the
first step, during a save and otherwise. Exit status: 0 if metrics and checkpoint are equal bit for
bit, otherwise 1.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
OPTIONS = ("--config.train.steps=600", "--config.checkpoint.every_steps=2")
LATEST_SECONDS = 4.0
"""A kill comes at most so long after the process has written its first line of metrics."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        _finish(whole, environment)
        tally: Counter[str] = Counter()
        while tally.total() < options.kills:
            moment = _kill(killed, environment, chance)
            if moment is None:
                print("the run ended before all kills: more steps are needed")
                return 1
            tally[moment] += 1
            print(f"kill {tally.total()}: {moment}, after step {_steps(killed)}", flush=True)
        _finish(killed, environment)
        metrics = [(workdir / "metrics.jsonl").read_bytes() for workdir in (whole, killed)]
        same = metrics[0] == metrics[1], _same_checkpoint(whole, killed)
    print(", ".join(f"{count} {moment}" for moment, count in tally.items()))
    print("metrics: " + ("equal" if same[0] else "DIFFERENT"))
    print("last checkpoint: " + ("equal" if same[1] else "DIFFERENT"))
    return 0 if all(same) else 1


def _command(workdir: Path) -> list[str]:
    config = ROOT / "tests/helpers/tiny_config.py"
    train = (sys.executable, str(ROOT / "train.py"))
    return [*train, f"--config={config}", f"--workdir={workdir}", *OPTIONS]


def _finish(workdir: Path, environment: Mapping[str, str]) -> None:
    ended = subprocess.run(
        _command(workdir), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"{workdir.name}: exit status {ended.returncode}\n{ended.stderr}")


def _kill(workdir: Path, environment: Mapping[str, str], chance: random.Random) -> str | None:
    """Starts the run and kills it. Returns what it was doing, or None if it ended before."""
    before = _steps(workdir)
    # One kill of ten comes while the run starts.
    starting = chance.random() < 0.1
    wait = chance.uniform(0.0, LATEST_SECONDS)
    process = subprocess.Popen(
        _command(workdir),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not starting and process.poll() is None and _steps(workdir) in (before, 0):
        if time.monotonic() > deadline:
            raise SystemExit("no step within 120 seconds")
        time.sleep(0.01)
    time.sleep(wait)
    # Stopped, the process cannot go on between the look at its files and the kill.
    process.send_signal(signal.SIGSTOP)
    checkpoints = workdir / "checkpoints"
    unfinished = list(checkpoints.glob("*.orbax-checkpoint-tmp*")) if checkpoints.exists() else []
    unverified = [
        path
        for path in (checkpoints.iterdir() if checkpoints.exists() else ())
        if path.name.isdecimal() and not (path / "manifest.json").exists()
    ]
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode != -signal.SIGKILL:
        if process.returncode:
            raise SystemExit(f"exit status {process.returncode}\n{errors}")
        return None
    if starting:
        return "while the run started"
    return "during a save" if unfinished or unverified else "between saves"


def _steps(workdir: Path) -> int:
    metrics = workdir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _same_checkpoint(*workdirs: Path) -> bool:
    """Whether the last checkpoints have the same arrays, bit for bit."""
    last = []
    for workdir in workdirs:
        steps = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
        newest = max(steps, key=lambda path: int(path.name))
        state = [path for path in newest.iterdir() if (path / "_METADATA").exists()]
        last.append([ocp.StandardCheckpointer().restore(path.absolute()) for path in state])
    first, second = map(jax.tree.leaves, last)
    return len(first) == len(second) > 0 and all(
        np.asarray(one).tobytes() == np.asarray(other).tobytes()
        for one, other in zip(first, second, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())

"""Kills a training run at random instants and compares the end with a run that nobody killed.

  python -m tests.kills --kills 30 --seed 0

Every second step is saved. Half of the kills wait for the next save, and come at a random instant
of it. The command prints the kills while the run started, during a save and between saves. Exit
status: 0 if metrics and checkpoint are equal bit for bit, otherwise 1.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
STEPS_PER_KILL = 40
"""More than a process takes before it is killed, on average."""
LATEST_SECONDS = 4.0
"""A kill comes at most so long after the process has written its first line of metrics."""
SAVE_SECONDS = 0.1
"""A kill during a save comes at most so long after its start."""


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
        steps = STEPS_PER_KILL * options.kills
        _finish(whole, steps, environment)
        tally: Counter[str] = Counter()
        while tally.total() < options.kills:
            moment = _kill(killed, steps, environment, chance)
            if moment is None:
                print("the run ended before all kills: more steps are needed")
                return 1
            tally[moment] += 1
            print(f"kill {tally.total()}: {moment}, after step {_steps(killed)}", flush=True)
        _finish(killed, steps, environment)
        metrics = [(workdir / "metrics.jsonl").read_bytes() for workdir in (whole, killed)]
        same = metrics[0] == metrics[1], _same_checkpoint(whole, killed)
    print(", ".join(f"{count} {moment}" for moment, count in tally.items()))
    print("metrics: " + ("equal" if same[0] else "DIFFERENT"))
    print("last checkpoint: " + ("equal" if same[1] else "DIFFERENT"))
    return 0 if all(same) else 1


def _command(workdir: Path, steps: int) -> list[str]:
    config = ROOT / "tests/helpers/tiny_config.py"
    return [
        *(sys.executable, str(ROOT / "train.py")),
        *(f"--config={config}", f"--workdir={workdir}"),
        *(f"--config.train.steps={steps}", "--config.checkpoint.every_steps=2"),
    ]


def _finish(workdir: Path, steps: int, environment: Mapping[str, str]) -> None:
    ended = subprocess.run(
        _command(workdir, steps),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(f"{workdir.name}: exit status {ended.returncode}\n{ended.stderr}")


def _kill(
    workdir: Path, steps: int, environment: Mapping[str, str], chance: random.Random
) -> str | None:
    """Starts the run and kills it. Returns what it was doing, or None if it ended before."""
    before = _steps(workdir)
    # One kill of ten comes while the run starts.
    starting, in_save = chance.random() < 0.1, chance.random() < 0.5
    wait, delay = chance.uniform(0.0, LATEST_SECONDS), chance.uniform(0.0, SAVE_SECONDS)
    process = subprocess.Popen(
        _command(workdir, steps),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while process.poll() is None and not condition():
            if time.monotonic() > deadline:
                raise SystemExit("no step or no save within 120 seconds")
            time.sleep(0.001)

    if not starting:
        wait_for(lambda: _steps(workdir) not in (before, 0))
    time.sleep(wait)
    if in_save and not starting:
        wait_for(lambda: not _saves(workdir))
        wait_for(lambda: _saves(workdir))
        time.sleep(delay)
    # Stopped, the process cannot go on between the look at its files and the kill.
    process.send_signal(signal.SIGSTOP)
    saves = _saves(workdir)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode != -signal.SIGKILL:
        if process.returncode:
            raise SystemExit(f"exit status {process.returncode}\n{errors}")
        return None
    if starting:
        return "while the run started"
    return "during a save" if saves else "between saves"


def _saves(workdir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((workdir / "checkpoints" / ".saving").glob("*"))


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

"""Random calls of `PidModel.generate`, beside plain greedy decoding and transformers' `generate`.

  python -m tests.fuzz --cases 2000 --seed 0     every difference is explained or a fault
  python -m tests.fuzz --case 123                one of them again
  python -m tests.fuzz --endurance 2000          programs and memory maps of one process

Exit status: 0; 1 with faults.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

import jax

from tests.fuzz import cases, checks, endurance, theirs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--endurance", type=int, metavar="CALLS")
    parser.add_argument("--seconds", type=int, default=checks.SECONDS, help="limit of one call")
    options = parser.parse_args(arguments)
    jax.config.update("jax_disable_most_optimizations", True)
    theirs.quiet()
    if options.endurance is not None:
        endurance.run(options.endurance, options.seed, seconds=options.seconds)
        return 0
    numbers = range(options.first, options.first + options.cases)
    if options.case is not None:
        numbers = range(options.case, options.case + 1)
    tally, since = checks.Tally(), time.perf_counter()
    for number in numbers:
        before = len(tally.faults)
        checks.check(cases.draw(options.seed, number), tally, options.seconds)
        for fault in tally.faults[before:]:
            print(fault, flush=True)
        if (number + 1) % 100 == 0:
            checks.forget()
            seconds = time.perf_counter() - since
            print(f"{number + 1} cases, {seconds:.0f} s, {len(tally.faults)} faults", flush=True)
    print(f"seed {options.seed}, {time.perf_counter() - since:.0f} s")
    print(tally)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Inference speed of pid_jax and other libraries: `python benchmarks/inference.py --help`."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run as a script: Python put this folder on its path, where the repository should be.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import command
from benchmarks.workloads import WORKLOADS

ENGINE_NAMES = (
    "transformers-pie",
    "transformers-pid",
    "transformers-pie-bfloat16",
    "transformers-pid-bfloat16",
    "ctranslate2",
    "ctranslate2-bfloat16",
    "ctranslate2-int8",
    "pid_jax-pie",
    "pid_jax-pid",
)
GROWTH_PROMPTS = (1, 2, 4, 8, 16, 32, 64)

DESCRIPTION = """\
Times greedy decoding with this project and other libraries, interleaved in one run, with the same
random weights, token ids and answer lengths. Compares the tokens, and compares each time with the
lower limit that follows from the machine's matrix-product rate and memory bandwidth.

  python -m pip install -r requirements-benchmarks.txt
  python benchmarks/inference.py --output=runs/benchmarks
  python benchmarks/inference.py --workloads qa --engines pid_jax-pid transformers-pid
  python benchmarks/inference.py --workloads --growth        # only the growth chart
  python benchmarks/inference.py --dtype=bfloat16            # on a GPU

All engines use JAX's default device. Engines that are not installed or cannot run there are
reported and left out. Writes OUTPUT/inference.json and, with matplotlib, inference.png and
growth.png.

workloads:
"""
EPILOG = """\
exit status: 0; 1 if engines disagree by more than rounding explains; 2 an error in the command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # By default JAX allocates most of a GPU's memory, but the other libraries need some.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from pid_jax.command_line import user_errors
    from pid_jax.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    with user_errors():
        return run(options)


def _parser() -> argparse.ArgumentParser:
    listed = "".join(
        f"  {name:<14}{sizes.model}, {sizes.documents} × {sizes.document_tokens} tokens, "
        f"{sizes.prompts} prompts of {sizes.prompt_tokens}, {sizes.new_tokens} new tokens\n"
        for name, sizes in WORKLOADS.items()
    )
    parser = command.parser("inference", DESCRIPTION + listed, EPILOG)
    usual = [name for name in WORKLOADS if name != "tiny"]
    parser.add_argument(
        "--workloads",
        nargs="*",
        choices=WORKLOADS,
        default=usual,
        metavar="NAME",
        help=f"default: {' '.join(usual)}",
    )
    command.add_engines(parser, ENGINE_NAMES)
    command.add_repeats(parser, default=5)
    parser.add_argument(
        "--budget",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="after this time on a workload, an engine runs at most 3 times (default: 60)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and activations (default: float32 on a CPU, else bfloat16)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the token ids")
    parser.add_argument(
        "--growth",
        nargs="?",
        const="dst",
        choices=WORKLOADS,
        metavar="WORKLOAD",
        help="also time both methods of pid_jax with 1 to 64 prompts (default: of dst)",
    )
    parser.add_argument(
        "--growth-prompts",
        nargs="+",
        type=command.positive,
        default=GROWTH_PROMPTS,
        metavar="P",
        help="default: 1 2 4 8 16 32 64",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="directory of the random weights, 2 GB (default: ~/.cache/pid_jax/benchmarks)",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs the benchmark. Returns the exit status."""
    import jax

    from benchmarks import machine, report

    dtype = options.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    result: dict[str, Any] = {
        **command.origin(),
        "dtype": dtype,
        "seed": options.seed,
        "repeats": {"most": options.repeats, "budget_seconds": options.budget},
        "rates": machine.measure(dtype),
        "workloads": [],
        "growth": None,
    }
    print(report.machine_lines(result["machine"], result["rates"]), flush=True)

    def write() -> None:  # after every part, so that a later failure loses nothing
        command.write(options.output, "inference", result)

    measured = Measurement(options, dtype, machine.rates_of(result["rates"]))
    for name in options.workloads:
        result["workloads"].append(measured.workload(name))
        print("\n" + report.table(result["workloads"][-1]), flush=True)
        write()
    if options.growth:
        result["growth"] = measured.growth(options.growth, options.growth_prompts)
        print("\n" + report.growth_table(result["growth"]), flush=True)
    write()
    _draw(result, options.output)
    agreements = [pair for entry in result["workloads"] for pair in entry["agreement"]]
    return 0 if all(pair["agree"] is not False for pair in agreements) else 1


class Measurement:
    """Times workloads. Reloads the model only if its size changes."""

    def __init__(self, options: argparse.Namespace, dtype: str, rates: Any):
        from benchmarks import weights

        self.options = options
        self.dtype = dtype
        self.rates = rates
        self.cache = options.cache or weights.default_cache()
        self.loader: Any = None

    def workload(self, name: str) -> dict[str, Any]:
        """One entry of the JSON's `workloads`."""
        from benchmarks import report, timing
        from benchmarks.engines import ENGINES
        from benchmarks.workloads import questions

        sizes = WORKLOADS[name]
        inputs = questions(sizes, self.options.seed)
        timed, left_out = self.warm(name, sizes, inputs, self.options.engines)
        timing.in_turn(timed, self.options.repeats, self.options.budget)

        limits = self.limits(sizes)
        engines = {key: measured.summary() for key, (measured, _) in timed.items()}
        for key, ratio in report.ratios(engines).items():
            limit = limits[ENGINES[key].method]["total"] if ENGINES[key].precise else None
            fraction = None if limit is None else limit / engines[key]["median"]
            engines[key] |= {"ratio": ratio, "fraction_of_limit": fraction}
        return {
            "name": name,
            "workload": dataclasses.asdict(sizes),
            "limits": limits,
            "engines": engines,
            "agreement": self.agreement(
                inputs, {key: pair[0].answers for key, pair in timed.items()}
            ),
            "left_out": left_out,
        }

    def warm(self, name: str, sizes: Any, inputs: Any, engines: Sequence[str]) -> tuple[Any, Any]:
        """Opens and warms up engines. Returns the available ones, and why others are left out."""
        from benchmarks import timing
        from benchmarks.engines import ENGINES, Loader, UnavailableError

        if self.loader is None or self.loader.model != sizes.model:
            self.loader = Loader(sizes.model, self.dtype, self.cache)
        timed: dict[str, tuple[Any, Callable[[], Any]]] = {}
        left_out = {}
        for key in engines:
            print(f"{name}: warming up {ENGINES[key].label}", file=sys.stderr, flush=True)
            try:
                variants = ENGINES[key].open(self.loader)
            except UnavailableError as error:
                left_out[key] = str(error)
                continue
            calls = {
                variant: lambda answer=answer: answer(inputs)
                for variant, answer in variants.items()
            }
            timed[key] = timing.warm_up(calls)
            _check_lengths(ENGINES[key].label, timed[key][0].answers, inputs)
        return timed, left_out

    def limits(self, sizes: Any) -> dict[str, dict[str, float]]:
        """The lower limit of each method in seconds, by phase and in total."""
        from benchmarks.limits import limit
        from benchmarks.workloads import model_config
        from pid_jax.models.t5 import T5Config

        config = T5Config.from_hf(model_config(sizes.model))
        itemsize = {"float32": 4, "bfloat16": 2}[self.dtype]
        return {
            method: limit(config, sizes, method, itemsize, self.rates) for method in ("pid", "pie")
        }

    def agreement(self, inputs: Any, answers: dict[str, Any]) -> list[dict[str, Any]]:
        """Compares pairs of engines with the same inputs. `agree` is None for lower precision."""
        from benchmarks import agreement
        from benchmarks.engines import ENGINES

        compared = []
        for ours, theirs in agreement.PAIRS:
            if ours not in answers or theirs not in answers:
                continue
            pair: dict[str, Any] = agreement.compare(answers[ours], answers[theirs])
            pair |= {"engines": [ours, theirs], "gaps": [], "agree": None}
            if ENGINES[theirs].precise:
                pair["gaps"] = agreement.gaps(
                    self.loader.pid_jax,
                    ENGINES[ours].method,
                    inputs,
                    answers[ours],
                    answers[theirs],
                    pair["divergences"],
                )
                largest = max(map(abs, pair["gaps"]), default=0.0)
                pair["agree"] = largest <= agreement.NEAR_TIE[self.dtype]
            compared.append(pair)
        return compared

    def growth(self, name: str, counts: Sequence[int]) -> dict[str, Any]:
        """Seconds per document of both methods for each number of prompts."""
        from benchmarks import timing
        from benchmarks.workloads import questions

        points = []
        for prompts in counts:
            sizes = dataclasses.replace(WORKLOADS[name], prompts=prompts)
            inputs = questions(sizes, self.options.seed)
            label = f"growth, {prompts} prompts"
            timed, _ = self.warm(label, sizes, inputs, ("pid_jax-pid", "pid_jax-pie"))
            timing.in_turn(timed, self.options.repeats, self.options.budget)
            limits = self.limits(sizes)
            point: dict[str, Any] = {"prompts": prompts, "limits": {}}
            for method in ("pid", "pie"):
                summary = timed[f"pid_jax-{method}"][0].summary()
                seconds = [run / sizes.documents for run in summary["seconds"]]
                spread = {
                    what: summary[what] / sizes.documents for what in ("median", "min", "max")
                }
                point[method] = {**spread, "seconds": seconds}
                point["limits"][method] = limits[method]["total"] / sizes.documents
            points.append(point)
        return {"workload": name, "points": points}


def _check_lengths(label: str, answers: Any, inputs: Any) -> None:
    """Raises RuntimeError unless an engine has generated all tokens of all answers."""
    lengths = {len(answer) for document in answers for answer in document}
    shape = [len(document) for document in answers]
    if lengths != {inputs.new_tokens} or shape != [len(prompts) for prompts in inputs.prompts]:
        raise RuntimeError(
            f"{label} answered {shape} prompts with {sorted(lengths)} tokens each, not "
            f"{[len(prompts) for prompts in inputs.prompts]} with {inputs.new_tokens}"
        )


def _draw(result: dict[str, Any], output: Path) -> None:
    from benchmarks import chart
    from benchmarks.engines import INSTALL

    machine = result["machine"]
    name = f"{machine['cpu']}, {machine['cores']} cores"
    if machine["backend"] != "cpu":
        name = machine["device"]
    caption = f"{name}, {result['dtype']}, {result['date'][:10]}"
    try:
        if result["workloads"]:
            chart.draw_engines(result["workloads"], caption, output / "inference.png")
        if result["growth"]:
            chart.draw_growth(result["growth"], caption, output / "growth.png")
    except ImportError as error:
        print(f"no chart: {error.name} is not installed: {INSTALL}")


if __name__ == "__main__":
    sys.exit(main())

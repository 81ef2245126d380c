"""PiD against PiE by estimates of compilers: `python benchmarks/pid_against_pie.py --help`."""

import argparse
import collections
import dataclasses
import datetime
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    # Run as a script: Python put this folder on its path, where the repository should be.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import command, estimates
from pid_jax.compile_ahead import targets

if TYPE_CHECKING:
    from pid_jax.compile_ahead.programs import ProgramRequest

DESCRIPTION = """\
Compiles training steps, prefills and decode steps for TPUs and GPUs that this machine lacks, under
prompt-in-decoder and under prompt-in-encoder with the same pairs of documents and prompts, and
estimates their time, FLOPs and memory. All figures are estimates of compilers. Nothing runs on an
accelerator.

Every program is compiled at two small depths, and its figures are extrapolated linearly to the
depth of the model. Each compilation takes from seconds to minutes and writes one entry, with the
commit, the version of jax and the date. A second run compiles only what is missing, and with
--stale also what has another commit or version.

  python -m pip install -r requirements-targets.txt
  python benchmarks/pid_against_pie.py
  python benchmarks/pid_against_pie.py --table           # what is there already, as Markdown

Writes OUTPUT/pid_against_pie.json.
"""
EPILOG = """\
exit status: 0; 2 an error in the command, or a compiler that is not installed.
"""
NAME = "pid_against_pie"
DIRECTORY = Path("benchmarks/results/compile_ahead")
METHODS = ("pid", "pie")
INPUT_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 512, 9, 16
"""Sizes of the encoder's input, of a prompt with the start token, and of targets and outputs. Under
PiE 8 of the 512 tokens are those of the prompt. Documents have 504 tokens, which PiD pads to the
bucket of 512."""
PROMPTS = (8, 64, 1)
TRAINING = ("--config.optimizer.name=adafactor", "--config.train.remat=none")
PROGRAMS = {"decoding": ("prefill", "decode"), "training": ("train",)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a model is compiled."""

    documents: int
    """Of a batch under PiD. Under PiE a batch has one for each of their prompts."""
    layers: int
    """In each stack of the whole model."""
    depths: Mapping[str, tuple[int, int]]
    """Numbers of layers that are compiled, by the keys of `PROGRAMS`."""
    trains_on_eight: bool = False
    """Whether training has eight devices that split the parameters: one is too small."""


T5_DEPTHS = {"decoding": (2, 4), "training": (1, 2)}
MODELS: Mapping[str, Plan] = {
    "t5-base": Plan(8, 12, T5_DEPTHS),
    "t5-large": Plan(4, 24, T5_DEPTHS),
    # Layers alternate between local and global attention.
    "t5gemma-2b-2b": Plan(8, 26, {"decoding": (2, 4), "training": (2, 4)}, trains_on_eight=True),
}
EIGHT = {"v5e": "v5e:2x4", "v6e": "v6e:2x4", "h100": "h100:8"}
TARGETS = tuple(EIGHT)
WHOLE = [
    ("t5-base", "v5e", "decoding", 8),
    ("t5-base", "h100", "decoding", 8),
    ("t5-base", "h100", "training", 8),
    ("t5-base", "v5e", "training", 8),
]
"""Programs that are also compiled at their whole depth, to check the extrapolation."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One program to compile."""

    model: str
    target: str
    """A kind of chip, or several with a topology."""
    program: str
    method: str
    prompts: int
    layers: int

    @property
    def key(self) -> str:
        """The name of the entry in the JSON file."""
        return (
            f"{self.model} {self.target} {self.program} {self.method}, "
            f"{self.prompts} prompts, {self.layers} layers"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(NAME, DESCRIPTION, EPILOG)
    parser.set_defaults(output=DIRECTORY)
    for name, values in (("model", MODELS), ("target", TARGETS), ("workload", PROGRAMS)):
        parser.add_argument(
            f"--{name}s",
            nargs="+",
            choices=tuple(values),
            default=tuple(values),
            metavar=name.upper(),
            help=f"of {', '.join(values)} (default: all)",
        )
    parser.add_argument(
        "--prompts",
        nargs="+",
        type=command.positive,
        default=PROMPTS,
        metavar="N",
        help=f"prompts of each document (default: {' '.join(map(str, PROMPTS))})",
    )
    parser.add_argument(
        "--stale", action="store_true", help="compile again what another commit or jax compiled"
    )
    parser.add_argument("--table", action="store_true", help="compile nothing, print the tables")
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Compiles what is missing, and prints the tables. Returns the exit status."""
    targets.prepare_environment()
    result = read(options.output)
    if not options.table:
        source = origin()
        for case in missing(result, cases(options), source if options.stale else {}):
            print(case.key, file=sys.stderr, flush=True)
            entry = {**compiled(case), **source, "date": datetime.date.today().isoformat()}
            result = finished({**result, "entries": {**result["entries"], case.key: entry}})
            command.write(options.output, NAME, result)
    for workload in PROGRAMS:
        print(f"{workload}\n\n{estimates.table(rows(result['entries'], workload))}\n")
    return 0


def target_of(model: str, kind: str, workload: str) -> str:
    """The target of a program, `v5e` or `v5e:2x4`."""
    return EIGHT[kind] if workload == "training" and MODELS[model].trains_on_eight else kind


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All programs, in the order of compilation: those that compile in seconds are first."""
    for workload in options.workloads:
        for model in options.models:
            for kind in options.targets:
                for prompts in options.prompts:
                    depths: tuple[int, ...] = MODELS[model].depths[workload]
                    if (model, kind, workload, prompts) in WHOLE:
                        depths = (*depths, MODELS[model].layers)
                    yield from _cases(model, kind, workload, prompts, depths)


def _cases(
    model: str, kind: str, workload: str, prompts: int, depths: Sequence[int]
) -> Iterator[Case]:
    """The programs of both methods at some depths."""
    target = target_of(model, kind, workload)
    for program in PROGRAMS[workload]:
        for method in METHODS:
            for layers in depths:
                yield Case(model, target, program, method, prompts, layers)


def origin() -> dict[str, str | None]:
    """The commit and the version of jax, which determine a program."""
    import jax

    from benchmarks import machine

    return {"commit": machine.commit()["commit"], "jax": jax.__version__}


def missing(
    result: Mapping[str, Any], wanted: Iterator[Case], source: Mapping[str, str | None]
) -> Iterator[Case]:
    """The cases that have no entry yet, or one of another origin. source: empty for any origin."""
    for case in wanted:
        entry = result["entries"].get(case.key)
        if entry is None or any(entry.get(key) != value for key, value in source.items()):
            yield case


def read(directory: Path) -> dict[str, Any]:
    """The results of earlier runs. Without a file, no entries."""
    path = directory / f"{NAME}.json"
    if not path.exists():
        return {"entries": {}}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def finished(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with its note, sizes, rows and deviations, which follow from the entries."""
    from pid_jax.compile_ahead.report import CAVEAT

    entries = result["entries"]
    return {
        "schema": 1,
        "note": CAVEAT,
        "commits": origins(entries, "commit"),
        "jax": origins(entries, "jax"),
        "encoder_input_tokens": INPUT_TOKENS,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "models": {name: dataclasses.asdict(plan) for name, plan in MODELS.items()},
        "training": list(TRAINING),
        **{workload: rows(entries, workload) for workload in PROGRAMS},
        "deviations": deviations(entries),
        "entries": entries,
    }


def origins(entries: Mapping[str, Any], key: str) -> dict[str, int]:
    """How many entries each commit or version of jax compiled."""
    return dict(collections.Counter(str(entry[key]) for entry in entries.values()))


def request(case: Case) -> "ProgramRequest":
    """What `compile_ahead` compiles for a case. Both methods have the same pairs."""
    from pid_jax import models
    from pid_jax.compile_ahead import architectures
    from pid_jax.compile_ahead.requests import ModelSource, request_of

    target = targets.parse(case.target)
    made = request_of(
        target,
        case.program,
        ModelSource(architecture=case.model, overrides=TRAINING if case.program == "train" else ()),
        sizes={
            "documents": MODELS[case.model].documents,
            # Under PiE the request adds the prompt's tokens but the start token.
            "document_tokens": INPUT_TOKENS - (PROMPT_TOKENS - 1) * (case.method == "pie"),
            "prompts": case.prompts,
            "prompt_tokens": PROMPT_TOKENS,
            "target_tokens": NEW_TOKENS,
        },
        mesh={"fsdp": -1} if target.count > 1 else {},
        method=case.method,
    )
    sizes = with_layers(architectures.get(case.model), case.layers)
    return dataclasses.replace(made, config=models.config_from_hf(sizes))


def compiled(case: Case) -> dict[str, Any]:
    """Compiles a program. Returns its figures."""
    from pid_jax.compile_ahead import report
    from pid_jax.compile_ahead.compilation import compile_request

    return dict(estimates.figures(report.to_json(compile_request(request(case)))))


def with_layers(sizes: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The sizes of a model with another number of layers in each stack."""
    if "encoder" in sizes:
        stacks = {name: {**sizes[name], "num_hidden_layers": layers} for name in STACKS}
        return {**sizes, **stacks}
    return {**sizes, "num_layers": layers, "num_decoder_layers": layers}


STACKS = ("encoder", "decoder")


def whole(
    entries: Mapping[str, Any],
    model: str,
    kind: str,
    workload: str,
    method: str,
    prompts: int,
    depths: Sequence[int] | None = None,
) -> dict[str, float | None] | None:
    """A whole call or training step of the whole model. None if entries are missing.

    depths: those to extrapolate from, the model's plan for None; one depth stands for itself.
    """
    plan, text = MODELS[model], target_of(model, kind, workload)
    target = targets.parse(text)
    devices = max(target.count, 1)
    programs = []
    for program in PROGRAMS[workload]:
        points = {}
        for layers in depths or plan.depths[workload]:
            entry = entries.get(Case(model, text, program, method, prompts, layers).key)
            if entry is None:
                return None
            points[layers] = entry
        only = len(points) == 1
        programs.append(
            next(iter(points.values())) if only else estimates.at_depth(points, plan.layers)
        )
    if workload == "training":
        return estimates.whole_step(programs[0], target.chip, devices)
    prefill, step = programs
    return estimates.whole_call(prefill, step, NEW_TOKENS, target.chip, devices)


def rows(entries: Mapping[str, Any], workload: str) -> list[dict[str, Any]]:
    """The lines of the table, without those that have no entries."""
    prompts = sorted({int(key.split(", ")[1].split()[0]) for key in entries})
    lines = []
    for model in MODELS:
        for kind in TARGETS:
            for count in prompts:
                pid, pie = (
                    whole(entries, model, kind, workload, method, count) for method in METHODS
                )
                if pid is None and pie is None:
                    continue
                text = target_of(model, kind, workload)
                lines.append(
                    {
                        "model": model,
                        "target": text,
                        "documents": MODELS[model].documents,
                        "prompts": count,
                        "pid": pid,
                        "pie": pie,
                        "ratio": _ratio(pid, pie),
                        "memory_bytes": targets.parse(text).chip.memory_bytes,
                    }
                )
    return lines


def _ratio(pid: estimates.Figures | None, pie: estimates.Figures | None) -> float | None:
    if pid is None or pie is None or not pid["seconds"] or pie["seconds"] is None:
        return None
    return pie["seconds"] / pid["seconds"]


def deviations(entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Relative differences of the extrapolation from whole models, where those were compiled."""
    differences = []
    for model, kind, workload, prompts in WHOLE:
        for method in METHODS:
            arguments = (entries, model, kind, workload, method, prompts)
            line = whole(*arguments)
            exact = whole(*arguments, depths=[MODELS[model].layers])
            if line is not None and exact is not None:
                differences.append(
                    {
                        "model": model,
                        "target": kind,
                        "workload": workload,
                        "method": method,
                        "prompts": prompts,
                        **estimates.deviation(line, exact),
                    }
                )
    return differences


if __name__ == "__main__":
    sys.exit(main())

"""Speed-up of prompt lookup for quoted answers: `python benchmarks/drafting.py --help`."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    # Run as a script: Python put this folder on its path, where the repository should be.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import command

if TYPE_CHECKING:
    from pid_jax.inference.model import PidModel

DESCRIPTION = """\
Trains a small model to quote notes (benchmarks/copying.py), in minutes on a CPU. Then answers
unseen documents alternately without and with drafts (prompt lookup), and counts decoder calls.

  python benchmarks/drafting.py --output=runs/benchmarks

WORKDIR has the data and the checkpoints. A later call resumes an interrupted training and reuses
a finished one. Writes OUTPUT/drafting.json.
"""
EPILOG = """\
exit status: 0; 1 if a draft changes a token, or if none halves the calls; 2 an error in the
command; 128 + signal number after a signal in training.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)

    from pid_jax.command_line import user_errors
    from pid_jax.compilation_cache import enable_compilation_cache
    from pid_jax.training.stop_signals import Interrupted

    enable_compilation_cache()
    try:
        with user_errors():
            return run(options)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("drafting", DESCRIPTION, EPILOG)
    parser.add_argument(
        "--draft-tokens",
        nargs="+",
        type=command.positive,
        default=(4, 8),
        metavar="N",
        help="default: 4 8",
    )
    parser.add_argument(
        "--documents-at-once",
        nargs="+",
        type=command.positive,
        default=(1, 8),
        metavar="N",
        help="documents in a batch (default: 1 8)",
    )
    command.add_repeats(parser, default=5)
    parser.add_argument(
        "--workdir",
        type=Path,
        default=Path("runs/benchmarks/copying"),
        metavar="DIR",
        help="default: runs/benchmarks/copying",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs the benchmark. Returns the exit status."""
    from benchmarks import copying
    from pid_jax.inference.model import PidModel

    steps = train(options.workdir)
    model = PidModel.from_pretrained(options.workdir / "run")
    lines = list(copying.lines("test"))
    result: dict[str, Any] = {
        **command.origin(),
        "training_steps": steps,
        "documents": len(lines),
        "answers": sum(len(line["subtasks"]) for line in lines),
        "measured": [
            measure(model, lines, at_once, (0, *options.draft_tokens), options.repeats)
            for at_once in options.documents_at_once
        ],
    }
    command.write(options.output, "drafting", result)
    print("\n" + table(result))
    return 0 if passed(result) else 1


def train(workdir: Path) -> int:
    """Trains or resumes the run if it is not finished. Returns the number of steps."""
    import logging

    from benchmarks import copying
    from pid_jax.training import loop

    log = logging.getLogger("pid_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.propagate = False
    copying.write(workdir / "data")
    return loop.train(copying.config(workdir / "data"), workdir / "run")


def measure(
    model: "PidModel",
    lines: Sequence[Mapping[str, Any]],
    at_once: int,
    draft_tokens: Sequence[int],
    repeats: int,
) -> dict[str, Any]:
    """Times generation with each number of draft tokens, the first of them 0."""
    from benchmarks import timing
    from pid_jax.decoding.report import DecodingReport

    def answer(drafts: int) -> Callable[[], Any]:
        def call() -> Any:
            report = DecodingReport()
            answers = model.generate(
                [line["document"] for line in lines],
                [[subtask["prompt"] for subtask in line["subtasks"]] for line in lines],
                draft_tokens=drafts,
                batch_size=at_once,
                batch_tokens=sys.maxsize,
                progress=False,
                report=report,
            )
            return answers, report

        return call

    timed = {drafts: timing.warm_up({f"{drafts}": answer(drafts)}) for drafts in draft_tokens}
    timing.in_turn({f"{drafts}": pair for drafts, pair in timed.items()}, repeats, budget=60.0)

    plain, plain_report = timed[0][0].answers
    targets = [subtask["target"] for line in lines for subtask in line["subtasks"]]
    texts = [answer.text for row in plain for answer in row]
    runs = []
    for drafts, (measured, _) in timed.items():
        answers, report = measured.answers
        runs.append(
            {
                "draft_tokens": drafts,
                "decoder_calls": report.decoder_calls,
                "calls_ratio": report.decoder_calls / plain_report.decoder_calls,
                "drafted_tokens": report.drafted_tokens,
                "accepted_tokens": report.accepted_tokens,
                "same_tokens": _tokens(answers) == _tokens(plain),
                **measured.summary(),
            }
        )
    for one in runs:
        one["seconds_ratio"] = one["median"] / runs[0]["median"]
    return {
        "documents_at_once": at_once,
        "tokens": plain_report.tokens,
        "exact_match": sum(map(str.__eq__, texts, targets)) / len(targets),
        "runs": runs,
    }


def _tokens(answers: Sequence[Sequence[Any]]) -> list[list[list[int]]]:
    return [[answer.tokens for answer in row] for row in answers]


def passed(result: Mapping[str, Any]) -> bool:
    """Whether no draft changed a token, and for every batch size one halved the calls."""
    return all(
        all(run["same_tokens"] for run in measured["runs"])
        and min(run["calls_ratio"] for run in measured["runs"]) <= 0.5
        for measured in result["measured"]
    )


def table(result: Mapping[str, Any]) -> str:
    """The results as a text table."""
    lines = [
        f"{result['documents']} unseen documents, {result['answers']} answers quoted from them, "
        f"by a model trained for {result['training_steps']} steps"
    ]
    for measured in result["measured"]:
        mean = measured["tokens"] / result["answers"]
        lines += [
            "",
            f"{measured['documents_at_once']} at a time: {mean:.1f} tokens an answer, "
            f"{measured['exact_match']:.1%} exactly right",
            f"  {'drafts':<8}{'calls':>8}{'ratio':>8}{'accepted':>10}{'seconds':>10}"
            f"{'min – max':>18}{'ratio':>8}  tokens",
        ]
        for run in measured["runs"]:
            drafted = run["drafted_tokens"]
            accepted = f"{run['accepted_tokens'] / drafted:.0%}" if drafted else "–"
            lines.append(
                f"  {run['draft_tokens'] or 'none':<8}{run['decoder_calls']:>8,}"
                f"{run['calls_ratio']:>8.2f}{accepted:>10}{run['median']:>10.3f}"
                f"{run['min']:>9.3f} – {run['max']:<6.3f}{run['seconds_ratio']:>8.2f}  "
                + ("the same" if run["same_tokens"] else "OTHERS")
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

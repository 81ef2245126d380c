"""The closing table of `make quickstart`: what was learnt, and what prompt-in-decoder saves."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pid_jax.command_line import make_parser, user_errors
from pid_jax.compilation_cache import enable_compilation_cache
from pid_jax.errors import UserError
from pid_jax.evaluation.files import METRICS, PREDICTIONS
from pid_jax.evaluation.predictions import read_lines
from pid_jax.inference.model import PidModel
from pid_jax.inference.request import Method

TIMED_DIALOGUES = 16
BATCH_SIZE = 8
PASSES = 5
# Both methods decode exactly so many tokens for each prompt. The weights were trained for PiD:
# left alone, PiE would not know when to stop, and the comparison would flatter PiD.
NEW_TOKENS = 8
WIDTH = 34


def last_turns(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each dialogue the line that holds all of it; ids are "<dialogue>:<turn>"."""
    return list({line["id"].rpartition(":")[0]: line for line in lines}.values())


def seconds_per_document(model: PidModel, lines: Sequence[dict[str, Any]], method: Method) -> float:
    """Median over passes, after one to warm up, with `BATCH_SIZE` documents at a time."""
    seconds = []
    for _ in range(1 + PASSES):
        started = time.perf_counter()
        model.generate(
            [line["document"] for line in lines],
            [[subtask["prompt"] for subtask in line["subtasks"]] for line in lines],
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            method=method,
            batch_size=BATCH_SIZE,
            batch_tokens=sys.maxsize,  # PiE, too, decodes all pairs of a batch of documents at once
        )
        seconds.append((time.perf_counter() - started) / len(lines))
    return statistics.median(seconds[1:])


def table(
    metrics: dict[str, Any], pid: float, pie: float, checkpoint: Path, dialogue: dict[str, Any]
) -> str:
    """The text that ends the quickstart."""
    scores, baseline = metrics["metrics"], metrics["baseline"]["metrics"]
    prompts = len(dialogue["subtasks"])

    def row(name: str, *cells: str) -> str:
        return f"  {name:<{WIDTH}}" + "".join(f"{cell:<18}" for cell in cells).rstrip()

    def score_row(name: str, key: str) -> str:
        return row(name, f"{scores[key]:.4f}", f"{baseline[key]:.4f}")

    return "\n".join(
        [
            "",
            f"Unseen dialogues ({metrics['documents']} turns, {prompts} slots each)",
            row("", "trained model", f'always "{metrics["baseline"]["always"]}"'),
            score_row("joint goal accuracy", "joint_goal_accuracy"),
            score_row("slot accuracy", "slot_accuracy"),
            "",
            f"Seconds per dialogue ({prompts} prompts of {NEW_TOKENS} new tokens, same weights, "
            f"{BATCH_SIZE} dialogues at a time)",
            row("prompt-in-encoder (PiE)", f"{pie:.4f}"),
            row("prompt-in-decoder (PiD)", f"{pid:.4f}", f"{pie / pid:.1f} times faster"),
            "",
            f"Exported for transformers: {checkpoint}",
            "",
            f"Dialogue {dialogue['id'].rpartition(':')[0]} and its predicted state",
            *_dialogue_rows(dialogue),
        ]
    )


def _dialogue_rows(line: dict[str, Any]) -> list[str]:
    utterances = line["document"].replace(" [", "\n[").split("\n")
    state = [
        f"  {subtask['id']:<{WIDTH}}{subtask['prediction']:<18}"
        + ("" if subtask["prediction"] == subtask["target"] else f"(is {subtask['target']})")
        for subtask in line["subtasks"]
        if {subtask["prediction"], subtask["target"]} != {"none"}
    ]
    return [*(f"  {utterance}" for utterance in utterances), "", *(row.rstrip() for row in state)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser("python -m pid_jax.quickstart", __doc__ or "", allow_abbrev=True)
    parser.add_argument(
        "--evaluation", required=True, type=Path, help="the directory that eval.py wrote"
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="the exported model, used for the timing"
    )
    options = parser.parse_args(arguments)
    with user_errors():
        try:
            metrics = json.loads((options.evaluation / METRICS).read_text("utf-8"))
            lines = read_lines(options.evaluation / PREDICTIONS)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} does not exist: run eval.py first") from error
        dialogues = last_turns(lines)
        enable_compilation_cache()
        model = PidModel.from_pretrained(options.checkpoint)
        timed = dialogues[:TIMED_DIALOGUES]
        pid = seconds_per_document(model, timed, "pid")
        pie = seconds_per_document(model, timed, "pie")
    longest = max(timed, key=lambda line: len(line["document"]))
    print(table(metrics, pid, pie, options.checkpoint, longest))


if __name__ == "__main__":
    main()

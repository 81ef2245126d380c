"""Model families other than T5 against transformers: `python benchmarks/families.py --help`."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run as a script: Python put this folder on its path, where the repository should be.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import command
from benchmarks.workloads import VOCABULARY, WORKLOADS, Questions, questions

DESCRIPTION = """\
Times greedy decoding of BART-base and of a T5Gemma of T5-base's size, with new weights, against
transformers: with prompts in the encoder, and, where transformers supports it, with the encoder
output of one document broadcast to its prompts in the decoder. Float32, interleaved, in one run.

  python -m pip install -r requirements-benchmarks.txt
  python benchmarks/families.py --output=runs/benchmarks

Writes OUTPUT/families.json. The documents of note exceed BART's 1,024 positions.
"""
EPILOG = """\
exit status: 0; 1 if tokens differ from those of transformers; 2 an error in the command.
"""
_GEMMA_STACK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "bart-base": {
        "model_type": "bart",
        "vocab_size": 50265,
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "max_position_embeddings": 1024,
    },
    "t5gemma": {"model_type": "t5gemma", "encoder": _GEMMA_STACK, "decoder": _GEMMA_STACK},
}
"""T5Gemma's gated feed-forward of width 2,048 has as many weights as T5-base's of 3,072."""
WORKLOAD_NAMES = ("dst", "note", "qa")
Answer = Callable[[], list[list[int]]]
"""Returns the new tokens of each prompt of the document."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("families", DESCRIPTION, EPILOG)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOAD_NAMES, default=WORKLOAD_NAMES)
    command.add_repeats(parser, default=3)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Runs the benchmark. Returns the exit status."""
    from pid_jax.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    measured: list[dict[str, Any]] = []
    result = {
        **command.origin(),
        "models": {name: dict(MODELS[name]) for name in options.models},
        "measured": measured,
    }
    with tempfile.TemporaryDirectory() as directory:
        for name in options.models:
            ours, theirs = load(MODELS[name], Path(directory) / name)
            for workload in options.workloads:
                print(f"{name}, {workload}", file=sys.stderr, flush=True)
                inputs = questions(WORKLOADS[workload], seed=0)
                record = measure(ours, theirs, inputs, options.repeats)
                measured.append({"model": name, "workload": workload, **record})
                print(table(measured[-1]), flush=True)
                command.write(options.output, "families", result)
    return 0 if all(record["tokens_equal"] for record in measured) else 1


def load(config: Mapping[str, Any], directory: Path) -> tuple[Any, Any]:
    """This project's model with new weights, and transformers' model with the same weights."""
    import jax
    import torch
    import transformers

    from benchmarks.machine import cores
    from pid_jax import PidModel, models

    model = models.build(config)
    ours = PidModel(model, models.init_params(model, jax.random.key(0)))
    ours.save_pretrained(directory)
    torch.set_num_threads(cores())
    transformers.logging.disable_progress_bar()
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32)
    return ours, theirs.eval()


def engines(ours: Any, theirs: Any, inputs: Questions) -> dict[str, Answer]:
    """Every engine for the questions about one document."""
    import torch

    [document], [prompts] = inputs.documents, inputs.prompts
    steps = {"max_new_tokens": inputs.new_tokens, "min_new_tokens": inputs.new_tokens}
    start = ours.config.decoder_start_token_id

    def pid_jax(method: str) -> Answer:
        def answer() -> list[list[int]]:
            [row] = ours.generate([document], [prompts], method=method, progress=False, **steps)
            return [generation.tokens for generation in row]

        return answer

    def transformers_pie() -> list[list[int]]:
        rows = torch.tensor([[*prompt, *document] for prompt in prompts])
        with torch.inference_mode():
            tokens = theirs.generate(rows, do_sample=False, **steps)
        answers: list[list[int]] = tokens[:, 1:].tolist()
        return answers

    def transformers_pid() -> list[list[int]]:
        rows = torch.tensor([[start, *prompt] for prompt in prompts])
        with torch.inference_mode():
            encoded = theirs.get_encoder()(input_ids=torch.tensor([document]))
            tokens = theirs.generate(
                encoder_outputs=encoded, decoder_input_ids=rows, do_sample=False, **steps
            )
        answers: list[list[int]] = tokens[:, rows.shape[1] :].tolist()
        return answers

    return {
        "pid_jax PiD": pid_jax("pid"),
        "pid_jax PiE": pid_jax("pie"),
        "transformers PiE": transformers_pie,
        "transformers PiD, broadcast": transformers_pid,
    }


def measure(ours: Any, theirs: Any, inputs: Questions, repeats: int) -> dict[str, Any]:
    """Seconds of every available engine, and whether their tokens agree."""
    from benchmarks import timing

    ready, left_out = {}, {}
    for name, answer in engines(ours, theirs, inputs).items():
        try:
            ready[name] = timing.warm_up({name: answer})
        except (RuntimeError, ValueError, IndexError) as error:  # depends on the model
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    timing.in_turn(ready, repeats, budget=60.0)
    answers = {name: timed.answers for name, (timed, _) in ready.items()}
    pairs = (
        ("pid_jax PiE", "transformers PiE"),
        ("pid_jax PiD", "transformers PiD, broadcast"),
    )
    return {
        "engines": {name: timed.summary() for name, (timed, _) in ready.items()},
        "left_out": left_out,
        "tokens_equal": all(answers[a] == answers[b] for a, b in pairs if b in answers),
    }


def table(record: Mapping[str, Any]) -> str:
    """The results of one model and workload as a text table."""
    engines = record["engines"]
    lines = [f"{record['model']}, {record['workload']}: seconds per document"]
    for name, figures in engines.items():
        ratio = figures["median"] / engines["pid_jax PiD"]["median"]
        lines.append(f"  {name:<30}{figures['median']:>9.3f}{ratio:>8.1f}")
    lines += [f"  {name:<30}{why}" for name, why in record["left_out"].items()]
    if engines:
        lines.append(f"  tokens as in transformers: {'yes' if record['tokens_equal'] else 'NO'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Time and memory for long documents: `python benchmarks/long_documents.py --help`."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run as a script: Python put this folder on its path, where the repository should be.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import command

DESCRIPTION = """\
Times the encoding of one document, and a training step on it, in small models with random
weights: LongT5 and LED, which attend locally, and T5, which attends to every token, up to
--longest-for-t5. Memory is the allocation of the compiled program without its arguments. The
memory of LongT5 and LED is linear in the length of the document, and so is the time of LED and of
LongT5 with local attention. With transient-global attention each of S tokens also attends to the
sums of S / 16 blocks, so the time has a part proportional to S x S / 16.

  python benchmarks/long_documents.py --output=runs/benchmarks

Writes OUTPUT/long_documents.json.
"""
EPILOG = """\
exit status: 0; 1 if the memory of LongT5 or LED grows faster than the document; 2 an error in
the command.
"""
PROMPTS, PROMPT_TOKENS, TARGET_TOKENS = 4, 8, 16
VOCABULARY, WIDTH, HEADS, FEED_FORWARD = 4096, 128, 4, 256
T5_LAYERS = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": FEED_FORWARD,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": HEADS,
}
LED_LAYERS = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FEED_FORWARD,
    "decoder_ffn_dim": FEED_FORWARD,
}
# Local attention has the families' default radius: 127 tokens (LongT5) and 256 (LED).
MODELS: Mapping[str, Mapping[str, Any]] = {
    "LongT5 local": {"model_type": "longt5", **T5_LAYERS},
    "LongT5 transient-global": {
        "model_type": "longt5",
        "encoder_attention_type": "transient-global",
        **T5_LAYERS,
    },
    "LED": {"model_type": "led", "attention_window": 512, **LED_LAYERS},
    "T5": {"model_type": "t5", **T5_LAYERS},
}
SLACK = 1.1
"""Tolerated factor of memory growth over document growth, for XLA's allocation."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("long_documents", DESCRIPTION, EPILOG)
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=command.positive,
        default=(1024, 4096, 16384),
        metavar="N",
        help="lengths of the document (default: 1024 4096 16384)",
    )
    parser.add_argument(
        "--longest-for-t5",
        type=int,
        default=4096,
        metavar="N",
        help="maximum length for T5, 0 to leave it out (default: 4096)",
    )
    command.add_repeats(parser, default=5)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Runs the benchmark. Returns the exit status."""
    from pid_jax.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    lengths = sorted(set(options.tokens))
    result: dict[str, Any] = {
        **command.origin(),
        "models": {name: dict(config) for name, config in MODELS.items()},
        "measured": measure(lengths, options.longest_for_t5, options.repeats),
    }
    command.write(options.output, "long_documents", result)
    print(table(result["measured"]))
    return 0 if passed(result["measured"]) else 1


def measure(lengths: Sequence[int], longest_for_t5: int, repeats: int) -> list[dict[str, Any]]:
    """One record per model, length and program. The timed runs of programs are interleaved."""
    from benchmarks import timing

    records, engines = [], {}
    for name, config in MODELS.items():
        for tokens in lengths:
            if name == "T5" and tokens > longest_for_t5:
                continue
            for program, (compiled, call) in programs(config, tokens).items():
                memory = compiled.memory_analysis()
                records.append(
                    {
                        "model": name,
                        "tokens": tokens,
                        "program": program,
                        "bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
                    }
                )
                engines[len(records) - 1] = timing.warm_up({program: call})
    timing.in_turn({str(index): pair for index, pair in engines.items()}, repeats, budget=120.0)
    for index, (timed, _) in engines.items():
        records[index] |= {
            "median": timed.summary()["median"],
            "min": min(timed.seconds),
            "max": max(timed.seconds),
            "seconds": timed.seconds,
        }
    return records


def programs(config: Mapping[str, Any], tokens: int) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """The compiled encoding and training step for one document, each with a function to run it."""
    import jax
    import numpy as np

    from pid_jax import models, prompt_in_decoder
    from pid_jax.data.batching import Batch

    if config["model_type"] == "led":
        config = {**config, "max_encoder_position_embeddings": tokens}
    model = models.build(config)
    params = models.init_params(model, jax.random.key(0))
    random = np.random.default_rng(0)

    def ids(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(3, VOCABULARY, shape).astype(np.int32), np.ones(shape, bool)

    batch = jax.device_put(
        Batch(*ids(1, tokens), *ids(1, PROMPTS, PROMPT_TOKENS), *ids(1, PROMPTS, TARGET_TOKENS))
    )

    def encode(params: Any, batch: Batch) -> Any:
        return prompt_in_decoder.encode(model, params, batch.documents, batch.document_mask)

    def train(params: Any, batch: Batch) -> Any:
        def loss(params: Any) -> Any:
            return prompt_in_decoder.loss(model, params, batch, dropout_key=jax.random.key(1))[0]

        return jax.value_and_grad(loss)(params)

    compiled = {
        "encoding": jax.jit(encode).lower(params, batch).compile(),
        "training": jax.jit(train).lower(params, batch).compile(),
    }

    def call(program: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(program(params, batch))

    return {name: (program, call(program)) for name, program in compiled.items()}


def _growth(records: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Memory growth relative to document growth, by the index of a record.

    The growth is that over the same program for a document of the next shorter length.
    """
    before: dict[tuple[str, str], Mapping[str, Any]] = {}
    growth = {}
    for index, record in enumerate(records):
        shorter = before.get((record["model"], record["program"]))
        if shorter is not None:
            longer = record["tokens"] / shorter["tokens"]
            growth[index] = record["bytes"] / shorter["bytes"] / longer
        before[record["model"], record["program"]] = record
    return growth


def passed(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether memory per token is constant, up to `SLACK`, in all models but T5."""
    return all(
        growth <= SLACK
        for index, growth in _growth(records).items()
        if records[index]["model"] != "T5"
    )


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The results as a text table."""
    lines = [
        f"{'model':<25}{'program':<10}{'tokens':>7}{'seconds':>10}{'min – max':>18}"
        f"{'µs/token':>10}{'MiB':>8}{'KiB/token':>11}"
    ]
    for record in sorted(
        records, key=lambda one: (list(MODELS).index(one["model"]), one["program"])
    ):
        tokens = record["tokens"]
        lines.append(
            f"{record['model']:<25}{record['program']:<10}{tokens:>7,}{record['median']:>10.3f}"
            f"{record['min']:>9.3f} – {record['max']:<6.3f}{record['median'] / tokens * 1e6:>10.1f}"
            f"{record['bytes'] / 2**20:>8.1f}{record['bytes'] / 2**10 / tokens:>11.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Padding and training speed with packed prompts: `python benchmarks/packing.py --help`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    # Run as a script: Python put this folder on its path, where the repository should be.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import command

DESCRIPTION = """\
Counts the real tokens of training batches with the t5_base settings of three configs, one prompt a
row and packed, and times training steps of both on ACI-Bench, in turn in one run, in float32 with
random weights.

  PID_JAX_DATA=DIR python benchmarks/packing.py --output=runs/benchmarks

DIR has aci-bench, multiwoz/derived_trade_layout/mwz2.1.zip and squad/cs224n_squad/data. Without
--tokenizer each task trains a tokenizer on its own texts. Writes OUTPUT/packing.json.
"""
EPILOG = "exit status: 0; 2 an error in the command."


class Source(NamedTuple):
    """The data of a task."""

    config: str
    path: str
    split: str


SOURCES = {
    "aci_bench": Source("aci_bench:t5_base", "aci-bench", "train"),
    "multiwoz": Source("multiwoz:21,t5_base", "multiwoz/derived_trade_layout/mwz2.1.zip", "train"),
    # The training file of SQuAD is too large for the folder.
    "squad": Source("squad:2,t5_base", "squad/cs224n_squad/data", "validation"),
}
TIMED = "aci_bench"
LAYOUTS = {"one prompt a row": False, "packed": True}
VOCABULARY = 32_000
"""The most tokens of a tokenizer that is trained here. T5's has as many."""


def parser() -> argparse.ArgumentParser:
    made = command.parser("packing", DESCRIPTION, EPILOG)
    made.add_argument("--tokenizer", default="", metavar="PATH", help="a directory or hub id")
    made.add_argument("--tasks", nargs="+", choices=tuple(SOURCES), default=tuple(SOURCES))
    made.add_argument(
        "--batches", type=command.positive, default=300, metavar="N", help="default: 300"
    )
    made.add_argument("--architecture", default="t5-small", metavar="NAME", help="of timed steps")
    made.add_argument(
        "--document-tokens", type=command.positive, default=512, metavar="N", help="of timed steps"
    )
    made.add_argument(
        "--micro-batches",
        type=command.positive,
        default=4,
        metavar="N",
        help="of timed steps, so that one prompt a row fits into 8 GB (default: 4)",
    )
    made.add_argument("--no-time", action="store_true", help="count tokens only")
    command.add_repeats(made, default=5)
    return made


class Prepared(NamedTuple):
    """A task's data as token ids."""

    config: Any
    model: Any
    tokenizer: Any
    source: Any

    def batches(self, packing: bool) -> Any:
        """The endless training batches."""
        from pid_jax.training import mixed_batches

        with self.config.unlocked():
            self.config.data.packing = packing
        return mixed_batches.training_batches(
            self.config, [self.source], self.model, self.tokenizer
        )


def prepare(name: str, options: argparse.Namespace, *overrides: str) -> Prepared:
    """Reads and tokenizes a task's examples. The model has the vocabulary of its tokenizer."""
    from pid_jax import models
    from pid_jax.compile_ahead import architectures
    from pid_jax.data.tokenizing import train_tokenizer
    from pid_jax.errors import UserError
    from pid_jax.training import assembly
    from pid_jax.training import config as configuration

    if "PID_JAX_DATA" not in os.environ:
        raise UserError("PID_JAX_DATA is not set: name the folder with the data, see --help")
    of_task = SOURCES[name]
    path = Path(os.environ["PID_JAX_DATA"]) / of_task.path
    split = [f"--config.data.train_split={of_task.split}", f"--config.data.path={path}"]
    config = configuration.load(of_task.config, [*split, *overrides])
    examples = assembly.read_examples(config, config.data.train_split)
    if options.tokenizer:
        from pid_jax.checkpoints import huggingface

        tokenizer = huggingface.load_tokenizer(huggingface.find(options.tokenizer))
        if tokenizer is None:
            raise UserError(f"--tokenizer={options.tokenizer}: no tokenizer there")
    else:
        # The texts of some examples suffice: a data set of dialogues has each turn many times.
        texts = []
        for example in assembly.evenly_spaced(examples, 5000):
            texts.append(example.document)
            texts += [text for one in example.subtasks for text in (one.prompt, one.target or "")]
        tokenizer = train_tokenizer(texts, VOCABULARY)
    described: Any = tokenizer
    sizes = dict(architectures.get(options.architecture))
    sizes |= {"pad_token_id": described.pad_token_id, "eos_token_id": described.eos_token_id}
    model = assembly.build_model(config, models.config_from_hf(sizes))
    source = assembly.tokenize(config, examples, model, tokenizer)
    return Prepared(config, model, tokenizer, source)


def count(prepared: Prepared, packing: bool, batches: int) -> dict[str, Any]:
    """The share of real tokens in the first batches, and their shapes."""
    import itertools

    real = padded = targets = outputs = 0
    shapes = set()
    for batch in itertools.islice(prepared.batches(packing), batches):
        real += batch.real_tokens.decoder
        padded += batch.shape.decoder_tokens
        targets += int(batch.target_mask.sum())
        outputs += batch.target_mask.size
        shapes.add(batch.shape)
    return {
        "real_decoder_tokens": real,
        "decoder_tokens": padded,
        "share": real / padded,
        "share_of_outputs": targets / outputs,
        "shapes": sorted(map(str, shapes)),
    }


def time_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Whole training steps on the same documents and prompts, both layouts in turn."""
    import itertools

    prepared = prepare(
        TIMED,
        options,
        f"--config.data.document_tokens={options.document_tokens}",
        f"--config.train.micro_batches={options.micro_batches}",
    )
    steps = {name: stepping(prepared) for name in LAYOUTS}
    batches = {
        name: list(itertools.islice(prepared.batches(packing), options.repeats))
        for name, packing in LAYOUTS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    losses: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for name, step in steps.items():
        for shape, batch in {batch.shape: batch for batch in batches[name]}.items():
            print(f"compiling for {shape}", file=sys.stderr, flush=True)
            step(batch, compile_only=True)
    for index in range(options.repeats):
        for name, step in steps.items():
            taken, loss = step(batches[name][index])
            seconds[name].append(taken)
            losses[name].append(loss)
    documents = prepared.config.data.batch_size * options.repeats
    rates = {name: documents / sum(taken) for name, taken in seconds.items()}
    first, second = rates.values()
    return {
        "architecture": options.architecture,
        "documents": prepared.config.data.batch_size,
        "document_tokens": options.document_tokens,
        "micro_batches": options.micro_batches,
        "dropout": prepared.config.train.dropout_rate,
        "seconds": seconds,
        "losses": losses,
        "documents_per_second": rates,
        "ratio": second / first,
    }


def stepping(prepared: Prepared) -> Callable[..., Any]:
    """A function that trains on a batch and returns the seconds and the loss."""
    import time

    import jax

    from pid_jax import models, sharding
    from pid_jax.training import compiled, optimizer, step

    config, model = prepared.config, prepared.model
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    update = optimizer.build(config)
    shardings = step.state_shardings(mesh, model, update)
    train_step, _ = compiled.training_programs(config, mesh, model, update, None, shardings)
    state = step.initial_state(models.init_params(model, jax.random.key(0)), update, 0)

    def run(batch: Any, compile_only: bool = False) -> Any:
        nonlocal state
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        program = train_step.compile(state, batch, label=batch.shape)
        if compile_only:
            return None
        started = time.perf_counter()
        state, metrics = program(state, batch)
        loss = float(metrics["loss"])
        return time.perf_counter() - started, loss

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    from pid_jax.command_line import user_errors

    with user_errors():
        counted = {}
        for name in options.tasks:
            prepared = prepare(name, options)
            counted[name] = {
                layout: count(prepared, packing, options.batches)
                for layout, packing in LAYOUTS.items()
            }
        result = {**command.origin(), "batches": options.batches, "tasks": counted}
        if not options.no_time:
            result["training"] = time_steps(options)
        command.write(options.output, "packing", result)
    print(table(result))
    return 0


def table(result: dict[str, Any]) -> str:
    """The shares and rates for people."""
    lines = [f"{'real tokens of the decoder':<28}" + "".join(f"{name:>18}" for name in LAYOUTS)]
    for name, layouts in result["tasks"].items():
        shares = "".join(f"{one['share']:>17.1%} " for one in layouts.values())
        lines.append(f"{name:<28}{shares.rstrip()}")
    if "training" in result:
        rates = result["training"]["documents_per_second"].values()
        lines.append(f"{'documents per second':<28}" + "".join(f"{rate:>18.3f}" for rate in rates))
        lines.append(f"{'ratio':<28}{result['training']['ratio']:>36.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

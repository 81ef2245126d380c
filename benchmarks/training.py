"""Training speed of pid_jax and transformers: `python benchmarks/training.py --help`."""

import argparse
import dataclasses
import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # Run as a script: Python put this folder on its path, where the repository should be.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import command
from benchmarks.workloads import WORKLOADS, Questions, Workload

DESCRIPTION = """\
Times whole training steps (loss, gradients, clipping, AdamW) of this project and of transformers,
interleaved in one run, with the same random weights and token ids, in float32. Compares the losses
without dropout. Measures the peak memory of each engine in a process of its own.

  python -m pip install -r requirements-benchmarks.txt
  python benchmarks/training.py --output=runs/benchmarks

"Repeated" is how transformers trains prompts in the decoder: one encoder output for each document,
repeated for every prompt. Writes OUTPUT/training.json.
"""
EPILOG = """\
exit status: 0; 1 if losses differ by more than rounding explains; 2 an error in the command.
"""

DEFAULT = Workload("t5-small", 2, 256, 30, 8, 4)
ENGINE_NAMES = ("pid_jax-pid", "pid_jax-pie", "transformers-pid", "transformers-pie")
REFERENCE = "pid_jax-pid"
_LEARNING_RATE = 1e-4
_LOSS_TOLERANCE = 1e-3
"""Relative, of sums in float32 in another order."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A model with its optimizer state."""

    step: Callable[[], float]
    """Does one step with dropout and returns its loss."""
    loss: Callable[[], float]
    """The loss without dropout."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What every engine trains."""

    workload: Workload
    questions: Questions
    targets: list[list[list[int]]]
    """Per document and prompt."""
    dropout: float
    checkpoint: Path


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from pid_jax.command_line import user_errors

    with user_errors():
        if options.alone is not None:
            return _alone(options)
        return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("training", DESCRIPTION, EPILOG)
    command.add_engines(parser, ENGINE_NAMES)
    parser.add_argument("--workload", choices=WORKLOADS, help="default: T5-small, see --documents")
    for field, value in dataclasses.asdict(DEFAULT).items():
        if field != "model":
            name = f"--{field.replace('_', '-')}".replace("new-tokens", "target-tokens")
            parser.add_argument(name, type=command.positive, metavar="N", help=f"default: {value}")
    parser.add_argument("--dropout", type=float, default=0.1, metavar="RATE", help="default: 0.1")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the token ids")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="directory of random weights")
    parser.add_argument("--alone", choices=ENGINE_NAMES, help=argparse.SUPPRESS)
    command.add_repeats(parser, default=7)
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs the benchmark. Returns the exit status."""
    from benchmarks import timing

    task = _task(options)
    # First, while this process has no model: two at a time may not fit the machine.
    peaks = (
        {} if options.no_memory else {name: _peak_bytes(name, options) for name in options.engines}
    )
    timed: dict[str, Any] = {}
    losses: dict[str, float] = {}
    for name in options.engines:
        print(f"warming up {name}", file=sys.stderr, flush=True)
        trainers = _open(name, task)
        losses[name] = next(iter(trainers.values())).loss()
        timed[name] = timing.warm_up({key: one.step for key, one in trainers.items()})
    timing.in_turn(timed, options.repeats, budget=1e9)
    engines: dict[str, Any] = {}
    for name, (measured, _) in timed.items():
        engines[name] = {**measured.summary(), "loss_without_dropout": losses[name]}
    for name, one in engines.items():
        one["documents_per_second"] = task.workload.documents / one["median"]
        if REFERENCE in engines:
            one["ratio"] = one["median"] / engines[REFERENCE]["median"]
        if name in peaks:
            one["peak_bytes"] = peaks[name]
    result = {
        **command.origin(),
        "dtype": "float32",
        "dropout": options.dropout,
        "workload": dataclasses.asdict(task.workload),
        "engines": engines,
    }
    command.write(options.output, "training", result)
    print(_table(engines))
    return 0 if _agree(losses) else 1


def _agree(losses: dict[str, float]) -> bool:
    """Whether the engines of one method have the same loss."""
    agree = True
    for method in ("pid", "pie"):
        of_method = {name: loss for name, loss in losses.items() if name.endswith(method)}
        low, high = min(of_method.values(), default=0), max(of_method.values(), default=0)
        if high - low > _LOSS_TOLERANCE * max(abs(high), 1):
            print(f"the losses differ: {of_method}", file=sys.stderr)
            agree = False
    return agree


def _table(engines: dict[str, Any]) -> str:
    lines = [f"{'':<18}{'s a step':>10}{'ratio':>8}{'documents/s':>13}{'peak GiB':>10}{'loss':>9}"]
    for name, one in engines.items():
        peak = f"{one['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in one else "-"
        ratio = f"{one['ratio']:.2f}" if "ratio" in one else "-"
        lines.append(
            f"{name:<18}{one['median']:>10.3f}{ratio:>8}{one['documents_per_second']:>13.3f}"
            f"{peak:>10}{one['loss_without_dropout']:>9.4f}"
        )
    return "\n".join(lines)


def _task(options: argparse.Namespace) -> Task:
    import numpy as np

    from benchmarks import weights
    from benchmarks.workloads import VOCABULARY, questions

    workload = DEFAULT if options.workload is None else WORKLOADS[options.workload]
    given = {
        "documents": options.documents,
        "document_tokens": options.document_tokens,
        "prompts": options.prompts,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.target_tokens,
    }
    workload = dataclasses.replace(workload, **{k: v for k, v in given.items() if v is not None})
    shape = workload.documents, workload.prompts, workload.new_tokens
    targets = np.random.default_rng(options.seed + 1).integers(3, VOCABULARY, shape)
    cache = options.cache or weights.default_cache()
    return Task(
        workload,
        questions(workload, options.seed),
        targets.tolist(),
        options.dropout,
        weights.checkpoint(workload.model, cache),
    )


def _open(name: str, task: Task) -> dict[str, Trainer]:
    """The configurations of an engine by name. The fastest is timed."""
    library, _, method = name.partition("-")
    if library == "pid_jax":
        return {"default": _pid_jax(method, task)}
    return {
        f"{attention} attention": _transformers(method, task, attention)
        for attention in ("sdpa", "eager")
    }


def _pid_jax(method: str, task: Task) -> Trainer:
    import jax

    from pid_jax import PidModel, sharding
    from pid_jax.data.batching import collate, shape_of
    from pid_jax.data.tokenizing import TokenizedExample
    from pid_jax.prompt_in_decoder import prompt_in_encoder
    from pid_jax.training import assembly, compiled, optimizer, step
    from pid_jax.training import config as configuration

    config = configuration.default()
    config.optimizer.learning_rate = _LEARNING_RATE
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    config.train.dropout_rate = task.dropout
    loaded = PidModel.from_pretrained(task.checkpoint, "float32")
    model = assembly.build_model(config, loaded.config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    update = optimizer.build(config)
    train_step, evaluation = compiled.training_programs(
        config, mesh, model, update, None, step.state_shardings(mesh, model, update)
    )
    state = step.initial_state(jax.tree.map(jax.numpy.copy, loaded.params), update, 0)
    asked = task.questions
    examples = [
        TokenizedExample(str(index), *rest)
        for index, rest in enumerate(zip(asked.documents, asked.prompts, task.targets, strict=True))
    ]
    if method == "pie":
        examples = list(prompt_in_encoder(examples, leading=()))
    tokens = loaded.config
    batch = collate(
        examples,
        dataclasses.replace(shape_of(examples), documents=len(examples)),
        pad_token_id=tokens.pad_token_id,
        decoder_start_token_id=tokens.decoder_start_token_id,
    )
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))

    def do_step() -> float:
        nonlocal state
        state, metrics = train_step(state, batch, label=batch.shape)
        return float(metrics["loss"])

    def loss() -> float:
        sums = evaluation(state.params, batch, label=batch.shape)
        return float(sums.loss / sums.target_tokens)

    return Trainer(do_step, loss)


@functools.cache
def _torch_model(checkpoint: Path, dropout: float, method: str) -> Any:
    """One model for the configurations of a method: each method trains its own."""
    import torch
    import transformers

    from benchmarks.machine import cores

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(cores())
    return transformers.T5ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, dropout_rate=dropout
    )


def _transformers(method: str, task: Task, attention: str) -> Trainer:
    import torch

    model = _torch_model(task.checkpoint, task.dropout, method)
    update = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    documents, prompts = task.questions.documents, task.questions.prompts
    targets = torch.tensor([row for document in task.targets for row in document])
    start = model.config.decoder_start_token_id

    def prompt_in_encoder() -> Any:
        rows = [
            [*prompt, *document]
            for document, of_document in zip(documents, prompts, strict=True)
            for prompt in of_document
        ]
        return model(input_ids=torch.tensor(rows), labels=targets).loss

    def prompt_in_decoder() -> Any:
        count = task.workload.prompts
        encoded = model.get_encoder()(input_ids=torch.tensor(documents))
        encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(count, dim=0)
        flat = torch.tensor([[start, *prompt] for rows in prompts for prompt in rows])
        ignored = torch.full((len(flat), flat.shape[1] - 1), -100)
        return model(
            encoder_outputs=encoded,
            decoder_input_ids=torch.cat([flat, targets[:, :-1]], dim=1),
            labels=torch.cat([ignored, targets], dim=1),
        ).loss

    forward = prompt_in_encoder if method == "pie" else prompt_in_decoder

    def do_step() -> float:
        model.set_attn_implementation(attention)
        model.train()
        update.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        return float(loss.detach())

    def loss() -> float:
        model.set_attn_implementation(attention)
        model.eval()
        with torch.no_grad():
            return float(forward())

    return Trainer(do_step, loss)


def _peak_bytes(name: str, options: argparse.Namespace) -> int:
    """The peak of resident memory of a process that only trains with this engine."""
    arguments = [f"--alone={name}", f"--dropout={options.dropout}", f"--seed={options.seed}"]
    for key in ("workload", "cache", "documents", "document_tokens", "prompts", "prompt_tokens"):
        value = getattr(options, key)
        if value is not None:
            arguments.append(f"--{key.replace('_', '-')}={value}")
    if options.target_tokens is not None:
        arguments.append(f"--target-tokens={options.target_tokens}")
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *arguments],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(ended.stdout.splitlines()[-1])["peak_bytes"])


def _alone(options: argparse.Namespace) -> int:
    trainer = next(iter(_open(options.alone, _task(options)).values()))
    for _ in range(2):
        trainer.step()
    print(json.dumps({"peak_bytes": _peak_of_process()}))
    return 0


def _peak_of_process() -> int:
    """On Linux not by getrusage, whose peak contains that of the parent process."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        (size,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(size) * 1024
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())

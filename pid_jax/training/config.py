"""The configuration of a run: every key with its default, and how a config file is read."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pid_jax.checkpoints import manifest
from pid_jax.errors import UserError
from pid_jax.models import rematerialisation
from pid_jax.training import config_files, optimizer
from pid_jax.training.config_files import read_argument

__all__ = [
    "check",
    "default",
    "differences",
    "get",
    "leaves",
    "load",
    "of_run",
    "read_argument",
    "read_saved",
    "to_json",
    "under",
    "with_optimizer_from_python",
    "with_overrides",
]

OPTIMIZER_FROM_PYTHON = "train(optimizer=...)"
"""The value of `optimizer.name` in the config.json of a run whose optimizer came from Python."""

# Sections whose keys the model family, the task and the optimizer define and check.
OPEN_SECTIONS = (
    "model.architecture",
    "model.init_architecture",
    "data.options",
    "optimizer.args",
)

# A run cannot go on from its checkpoint under another value of these.
FIXED_BY_CHECKPOINT = (
    "method",
    "seed",
    "model.architecture",
    "model.init",
    "model.partial_init",
    "model.init_architecture",
    "tokenizer",
    "data",
    "optimizer.name",
)
# These name where things are or what is reported: another value changes no training step.
WITHOUT_EFFECT_ON_TRAINING = (
    "data.path",
    "data.validation_split",
    "train.log_every_steps",
    "train.remat",
    "evaluation",
    "checkpoint",
)


def default() -> ConfigDict:
    """The defaults: a small T5 trained from scratch on the synthetic dialogues."""
    config = ConfigDict()
    # "pid": encode the document once and decode every prompt against it; "pie": the usual way,
    # the prompt in front of the document and one encoder run for each prompt.
    config.method = "pid"
    # Seeds the parameters, dropout and the order of the data.
    config.seed = 0

    config.model = ConfigDict()
    # Start from these weights: a Hugging Face directory or hub id, or a training workdir.
    # "" starts from random parameters, with the sizes of model.architecture.
    config.model.init = ""
    # Start from a checkpoint of another model: parameters that it lacks, or has in another shape,
    # are initialised, what does not fit is left out, and the log names both. Without this, such
    # a checkpoint is an error. A tokenizer with more tokens than the checkpoint extends the
    # vocabulary.
    config.model.partial_init = False
    # With partial_init: keys of a config.json with other values than the checkpoint's, such as
    # ConfigDict({"num_layers": 12}) here, or --config.model.init_architecture.num_layers=12.
    config.model.init_architecture = ConfigDict()
    # Activations: "float32", "bfloat16", or "auto": bfloat16 on TPU and GPU, float32 on CPU.
    # Parameters, optimizer state, softmax, norms and loss are float32 in any case.
    config.model.dtype = "auto"
    # Training and evaluation scan over layers: the program has each kind of layer once, so that
    # deep models compile faster. Checkpoints are the same. Dropout draws other numbers.
    config.model.scan_layers = False
    # Used when model.init is "": keys and values of a Hugging Face config.json. The vocabulary
    # size and the special token ids come from the tokenizer.
    config.model.architecture = ConfigDict(
        {
            "model_type": "t5",
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 256,
            "num_layers": 3,
            "num_decoder_layers": 3,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": True,
        }
    )

    config.tokenizer = ConfigDict()
    # A directory or hub id. "": the one beside model.init, or, from scratch, a new one trained
    # on the training documents, prompts and targets.
    config.tokenizer.path = ""
    # Size of a tokenizer trained here (at most: a small corpus yields fewer tokens).
    config.tokenizer.vocab_size = 4096

    config.data = ConfigDict()
    # One of pid_jax.tasks.names().
    config.data.task = "synthetic_dst"
    # Where the task's data lies: the source (file, directory or zip), or what
    # pid_jax.data.prepare made of it. "" where the task needs none.
    config.data.path = ""
    # The task's own options, passed on by name.
    config.data.options = ConfigDict()
    config.data.train_split = "train"
    config.data.validation_split = "validation"
    # Documents per step, over all devices.
    config.data.batch_size = 16
    # At most this many of a document's prompts are drawn in one step.
    config.data.max_prompts = 30
    # A subtask whose target is the task's negative target ("none" for dialogue states) takes
    # part in a step with this probability: most slots of most turns are absent.
    config.data.negative_rate = 1.0
    # Longer texts are cut to this many tokens, end tokens included, and the run says how many.
    config.data.document_tokens = 256
    config.data.prompt_tokens = 16
    config.data.target_tokens = 16
    # Which end of a document is cut: with "left", dialogues lose their first turns.
    config.data.truncation_side = "left"
    # Batches are padded to multiples of this many document tokens (a power of two): larger
    # means more padding, but fewer programs to compile.
    config.data.document_multiple = 64

    config.optimizer = ConfigDict()
    # An optimizer of optax by its name: "adamw" (Loshchilov & Hutter, arXiv 1711.05101),
    # "adafactor" (Shazeer & Stern, arXiv 1804.04235: factored second moments, next to no memory;
    # T5's own optimizer), "lion", "sgd", "contrib.muon" and so on.
    config.optimizer.name = "adamw"
    # Further arguments of that function of optax, by name: ConfigDict({"momentum": 0.9}) here,
    # --config.optimizer.args.momentum=0.9 on the command line.
    config.optimizer.args = ConfigDict()
    # The peak, reached at the end of the warm-up. Adafactor with scale_by_parameter takes it
    # relative to each parameter's size: ten times AdamW's is a good start.
    config.optimizer.learning_rate = 1e-3
    # Steps of linear warm-up from zero.
    config.optimizer.warmup_steps = 100
    # After the warm-up: "constant", "linear" or "cosine" (both reach final_fraction of the peak
    # at train.steps), or "rsqrt" (the peak times sqrt(warmup_steps / step)).
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 0.0
    # Decoupled, times the learning rate, on matrices only (no norm scales, no biases). This holds
    # for every optimizer: the weight decay of optax's function itself is an entry of args.
    config.optimizer.weight_decay = 0.0
    # Gradients with a larger global norm are scaled down to it; 0 leaves them alone.
    config.optimizer.clip_norm = 1.0
    # AdamW's moment decays and epsilon. Other optimizers take theirs from args.
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    # Adafactor: scale each update by the root mean square of its parameter, as T5 was trained.
    config.optimizer.scale_by_parameter = True

    config.train = ConfigDict()
    # Optimizer updates in the whole run.
    config.train.steps = 1000
    # In both stacks, whatever the checkpoint's config.json says.
    config.train.dropout_rate = 0.1
    # Probability mass spread evenly over the vocabulary.
    config.train.label_smoothing = 0.0
    # Weight of log(Z)^2, which holds the logits' normaliser near 1 (Mesh TensorFlow; T5 used 1e-4).
    config.train.z_loss = 0.0
    # What the backward pass computes again, in each layer: "none", "full" (everything but the
    # input of the layer), "dots_with_no_batch_dims" (all but products with parameters), "dots"
    # (all but products), or a name of jax.checkpoint_policies. Saves memory, costs time.
    config.train.remat = "none"
    # Parts of a batch whose gradients are computed one after another and summed, weighted by their
    # target tokens: the memory of a smaller batch, the loss of the whole one.
    config.train.micro_batches = 1
    # Steps between progress lines and TensorBoard points; metrics.jsonl has every step.
    config.train.log_every_steps = 20

    config.evaluation = ConfigDict()
    # Steps between teacher-forced evaluations on validation data (and one at the end).
    config.evaluation.every_steps = 200
    # Validation documents, evenly spaced over the split; 0 takes all.
    config.evaluation.documents = 256
    # Documents per evaluation batch, over all devices; 0: as in training. eval.py decodes so many
    # at most, fewer where their tokens exceed the budget of PidModel.generate.
    config.evaluation.batch_size = 0

    config.checkpoint = ConfigDict()
    # Steps between checkpoints; one is also written at every evaluation, and at the end.
    config.checkpoint.every_steps = 200
    # How many of the latest checkpoints remain, beside the best one.
    config.checkpoint.keep_last = 2
    # The validation metric that ranks checkpoints: "loss" (lowest is best),
    # "token_accuracy", "exact_match" (of targets) or "joint_exact_match" (of documents whose every
    # target is right; for dialogue states this is joint goal accuracy on tokens).
    config.checkpoint.best_metric = "joint_exact_match"

    config.mesh = ConfigDict()
    # Devices along each axis of the mesh; -1 takes those that are left. Documents are split
    # over data and fsdp.
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config.lock()


def load(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs a config file's `get_config()` and applies `--config.a.b=value` overrides.

    `path` is a Python file or the name of one of this project's config files, optionally with an
    argument for `get_config`: "file.py:argument", "multiwoz:21,t5_base". Raises UserError for a
    file that cannot be run, an unknown key or a value of another type.
    """
    config, file = config_files.run(path)
    _check_keys(config, str(file))
    return with_overrides(config, overrides, path)


def of_run(workdir: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """The configuration of a training run, for other work than to go on with it.

    Keys that the run's version did not have yet get their defaults, and so does an optimizer that
    came from Python.
    """
    file = Path(workdir) / "config.json"
    config = default().unlock()
    for section in OPEN_SECTIONS:
        get(config, section.rpartition(".")[0])[section.rpartition(".")[2]] = ConfigDict()
    manifest.check_file(file.parent, file.name)
    try:
        saved = read_saved(file)
        if saved["optimizer"].get("name") == OPTIMIZER_FROM_PYTHON:
            del saved["optimizer"]
        config.update(saved)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: {error}: name a config file with --config") from error
    return with_overrides(config, overrides, file)


def with_overrides(config: ConfigDict, overrides: Sequence[str], name: str | Path) -> ConfigDict:
    """Applies `--config.a.b=value` overrides to a configuration, which `name` names in errors."""
    known = dict(leaves(config))
    for override in overrides:
        _check_override(override, known, name)

    values = flags.FlagValues()
    argv = ["config", *overrides]
    # accept_new_attributes: for OPEN_SECTIONS only, since everything else was checked above.
    config_flags.DEFINE_config_dict(
        "config",
        config.unlock(),
        lock_config=False,
        flag_values=values,
        sys_argv=argv,
        accept_new_attributes=True,
    )
    try:
        rest = values(argv)
    except flags.Error as error:
        raise UserError(f"{error} (in {name} the key has another type)") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: overrides look like --config.key=value")
    config.lock()
    check(config)
    return config


def check(config: ConfigDict) -> None:
    """Raises UserError, naming the key, for a value outside its range."""
    _one_of(config, "method", ("pid", "pie"))
    _one_of(config, "model.dtype", ("auto", "float32", "bfloat16"))
    if config.model.partial_init and not config.model.init:
        raise UserError("config.model.partial_init needs a checkpoint in config.model.init")
    if config.model.init_architecture and not config.model.partial_init:
        raise UserError("config.model.init_architecture needs config.model.partial_init=True")
    _one_of(config, "train.remat", rematerialisation.NAMES)
    optimizer.check(config)
    _one_of(config, "optimizer.schedule", ("constant", "linear", "cosine", "rsqrt"))
    _one_of(config, "data.truncation_side", ("left", "right"))
    _one_of(
        config,
        "checkpoint.best_metric",
        ("loss", "token_accuracy", "exact_match", "joint_exact_match"),
    )
    for key in (
        "data.batch_size",
        "data.max_prompts",
        "data.document_tokens",
        "data.prompt_tokens",
        "data.target_tokens",
        "data.document_multiple",
        "train.steps",
        "train.micro_batches",
        "train.log_every_steps",
        "evaluation.every_steps",
        "checkpoint.every_steps",
        "checkpoint.keep_last",
    ):
        _at_least(config, key, 1)
    for key in (
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "train.z_loss",
        "evaluation.documents",
        "evaluation.batch_size",
    ):
        _at_least(config, key, 0)
    for key in ("data.negative_rate", "optimizer.final_fraction"):
        if not 0 <= get(config, key) <= 1:
            raise UserError(f"config.{key} is {get(config, key)}: it must be from 0 to 1")
    for key in ("train.dropout_rate", "train.label_smoothing"):
        if not 0 <= get(config, key) < 1:
            raise UserError(f"config.{key} is {get(config, key)}: it must be from 0 to below 1")


def with_optimizer_from_python(config: ConfigDict) -> ConfigDict:
    """A copy that says so: a run does not go on with a configured optimizer, or the reverse."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.optimizer.name = OPTIMIZER_FROM_PYTHON
        changed.optimizer.args = ConfigDict()
    return changed


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key in dotted form with its value; an empty section is a leaf of its own."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value) > 0:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            empty_section = isinstance(value, Mapping | ConfigDict)
            yield f"{prefix}{key}", {} if empty_section else value


def get(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys on which two configurations disagree, with both values (None: absent)."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def under(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of `sections` or lies within one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def to_json(config: ConfigDict) -> str:
    """The configuration as it is written to a workdir's config.json."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def read_saved(file: Path) -> dict[str, Any]:
    """The configuration in a workdir's config.json, with keys that its version did not have yet."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: {error}: name a config file with --config") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object: name a config file with --config")
    later: dict[str, dict[str, Any]] = {
        "optimizer": {"args": {}},
        "model": {"scan_layers": False, "partial_init": False, "init_architecture": {}},
        "train": {"remat": rematerialisation.NONE, "micro_batches": 1},
    }
    for name, added in later.items():
        section = content.setdefault(name, {})
        if isinstance(section, dict):
            content[name] = {**added, **section}
    return content


def _check_keys(config: ConfigDict, file: str) -> None:
    expected = {key for key, _ in leaves(default()) if not under(key, OPEN_SECTIONS)}
    present = {key for key, _ in leaves(config) if not under(key, OPEN_SECTIONS)}
    missing = sorted(expected - present)
    unknown = sorted(present - expected)
    if missing or unknown:
        parts = [f"no key {key}" for key in missing] + [f"unknown key {key}" for key in unknown]
        raise UserError(
            f"config file {file}: {', '.join(parts)}. Start from pid_jax.training.config.default()"
        )


def _check_override(override: str, known: Mapping[str, Any], path: str | Path) -> None:
    if not override.startswith("--config."):
        raise UserError(f"unexpected argument {override!r}: overrides look like --config.key=value")
    key, equals, _ = override.removeprefix("--config.").partition("=")
    if not equals:
        raise UserError(f"{override}: write --config.{key}=value")
    if key in known or (under(key, OPEN_SECTIONS) and key not in OPEN_SECTIONS):
        return
    sections = sorted(name for name in known if name.startswith(f"{key}."))
    if sections:
        raise UserError(
            f"config.{key} is a section; set its keys one by one: "
            + ", ".join(f"--config.{name}" for name in sections)
        )
    raise UserError(f"unknown key config.{key} for {path}{_hint(key, known)}")


def _hint(key: str, known: Mapping[str, Any]) -> str:
    """What an unknown key may have been meant to be, or what its section holds."""
    section, _, name = key.rpartition(".")
    beside = [other for other in known if other.rpartition(".")[0] == section]
    close = [other for other in known if other.rpartition(".")[2] == name]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.85)
    if close:
        return f"; did you mean config.{close[0]}?"
    if section and beside:
        names = ", ".join(other.rpartition(".")[2] for other in beside)
        return f": config.{section} has {names}"
    return ""


def _one_of(config: ConfigDict, key: str, choices: Sequence[str]) -> None:
    if get(config, key) not in choices:
        raise UserError(f"config.{key} is {get(config, key)!r}: choose from {', '.join(choices)}")


def _at_least(config: ConfigDict, key: str, least: int) -> None:
    if get(config, key) < least:
        raise UserError(f"config.{key} is {get(config, key)}: it must be at least {least}")

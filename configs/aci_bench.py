"""ACI-Bench notes. The argument is SIZE, for example `aci_bench:t5_base`.

    python train.py --config=configs/aci_bench.py:scratch --workdir=runs/aci_bench \\
        --config.data.path=aci-bench

SIZE (default: scratch):
  scratch      a small T5 from scratch, which shows the whole path on a CPU. All values are our
               choice for two cores. 67 notes without pretraining do not teach a model to write
               notes.
  t5_base      T5-base, for a GPU or a TPU. multiwoz.py names the sources of the values. Lengths
               and steps are our choice: they cut few of the 67 training conversations and notes,
               and go through them forty times.
  led_base     LED-base, which reads whole conversations. AdamW at 3e-5 with label smoothing 0.1 is
               how BART, LED's decoder, was fine-tuned to summarise (Lewis et al., arXiv 1910.13461,
               section 5.3, and the authors' scripts). Otherwise as t5_base.
  bart_large   BART-large, as led_base. BART has positions for 1,024 tokens: it reads only the start
               of longer conversations.

None of them was measured on an accelerator: where a step does not fit into memory, halve
data.batch_size and double train.steps.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration

SIZES = ("scratch", "t5_base", "led_base", "bart_large")


def get_config(argument: str = "") -> ConfigDict:
    [size] = configuration.read_argument(argument, SIZE=SIZES)
    return {
        "scratch": _scratch,
        "t5_base": _t5_base,
        "led_base": _led_base,
        "bart_large": _bart_large,
    }[size]()


def _scratch() -> ConfigDict:
    config = configuration.default()
    config.tokenizer.vocab_size = 4096

    config.data.task = "aci_bench"
    # A clone of wyim/aci-bench, or its data folder, or a zip of either.
    config.data.path = ""
    # This cuts most conversations and a quarter of the divisions: two cores take no more.
    config.data.document_tokens = 1024
    config.data.prompt_tokens = 16
    config.data.target_tokens = 256
    config.data.truncation_side = "right"
    config.data.document_multiple = 512
    config.data.batch_size = 2

    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 0.02
    config.optimizer.schedule = "rsqrt"
    # Thirty times through the training set.
    config.train.steps = 1_000
    config.train.log_every_steps = 10
    config.evaluation.every_steps = 100
    config.checkpoint.every_steps = 100
    # No note is ever matched exactly.
    config.checkpoint.best_metric = "loss"
    return config


def _t5_base() -> ConfigDict:
    config = configuration.default()
    config.model.init = "google-t5/t5-base"

    config.data.task = "aci_bench"
    # A clone of wyim/aci-bench, or its data folder, or a zip of either.
    config.data.path = ""
    # T5's tokenizer knows no line breaks, and the notes are made of lines.
    config.data.options = ConfigDict({"line_break": " | "})
    config.data.document_tokens = 2560
    config.data.prompt_tokens = 32
    config.data.target_tokens = 768
    config.data.truncation_side = "right"
    config.data.document_multiple = 256
    config.data.batch_size = 8

    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 20
    config.train.dropout_rate = 0.1
    config.train.z_loss = 1e-4
    config.train.steps = 340
    config.train.log_every_steps = 10
    config.evaluation.every_steps = 34
    config.checkpoint.every_steps = 34
    # No note is ever matched exactly.
    config.checkpoint.best_metric = "loss"
    return config


def _led_base() -> ConfigDict:
    config = _t5_base()
    config.model.init = "allenai/led-base-16384"
    # Its tokenizer knows line breaks.
    config.data.options = ConfigDict()
    config.data.document_tokens = 4096
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-5
    config.train.label_smoothing = 0.1
    return config


def _bart_large() -> ConfigDict:
    config = _led_base()
    config.model.init = "facebook/bart-large"
    config.data.document_tokens = 1024
    return config

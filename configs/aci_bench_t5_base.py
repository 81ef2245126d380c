"""ACI-Bench notes with T5-base, for a GPU or a TPU.

    python train.py --config=configs/aci_bench_t5_base.py --workdir=runs/aci_bench_t5_base \\
        --config.data.path=aci-bench

The values come from where multiwoz21_t5_base.py says. Lengths and steps are our choice: they cut
few of the 67 training conversations and notes, and go through them forty times. Not measured on
an accelerator: where a step does not fit into memory, halve data.batch_size and double
train.steps.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration


def get_config() -> ConfigDict:
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

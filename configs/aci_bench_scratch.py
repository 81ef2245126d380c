"""ACI-Bench notes with a small T5 from scratch: shows the whole path on a CPU.

    python train.py --config=configs/aci_bench_scratch.py --workdir=runs/aci_bench \\
        --config.data.path=aci-bench

All values are our choice, made for two cores. Nobody learns to write notes from 67 of them and no
pretraining: see aci_bench_t5_base.py.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration


def get_config() -> ConfigDict:
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

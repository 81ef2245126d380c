"""SQuAD 2.0 with a small T5 from scratch: shows the whole path on a CPU.

    python train.py --config=configs/squad2_scratch.py --workdir=runs/squad2 \\
        --config.data.path=squad

All values are our choice, made for two cores. A model of this size and no pretraining is far from
the state of the art: see squad2_t5_base.py.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration


def get_config() -> ConfigDict:
    config = configuration.default()
    config.tokenizer.vocab_size = 4096

    config.data.task = "squad2"
    # A directory or zip with train-v2.0.json and dev-v2.0.json.
    config.data.path = ""
    # About one paragraph in ten is longer.
    config.data.document_tokens = 320
    config.data.prompt_tokens = 32
    config.data.target_tokens = 24
    config.data.truncation_side = "right"
    config.data.batch_size = 16
    config.data.max_prompts = 8

    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_steps = 200
    config.optimizer.schedule = "rsqrt"
    config.train.steps = 20_000
    config.train.log_every_steps = 10
    config.evaluation.every_steps = 500
    config.evaluation.documents = 128
    config.checkpoint.every_steps = 100
    config.checkpoint.best_metric = "exact_match"
    return config

"""SQuAD 2.0 with T5-base, for a GPU or a TPU.

    python train.py --config=configs/squad2_t5_base.py --workdir=runs/squad2_t5_base \\
        --config.data.path=squad

The values come from where multiwoz21_t5_base.py says; lengths and steps are our choice. Not
measured on an accelerator: where a step does not fit into memory, halve data.batch_size and
double train.steps.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration


def get_config() -> ConfigDict:
    config = configuration.default()
    config.model.init = "google-t5/t5-base"

    config.data.task = "squad2"
    # A directory or zip with train-v2.0.json and dev-v2.0.json.
    config.data.path = ""
    # Few paragraphs are longer.
    config.data.document_tokens = 512
    config.data.prompt_tokens = 48
    config.data.target_tokens = 48
    config.data.truncation_side = "right"
    config.data.document_multiple = 128
    config.data.batch_size = 32
    config.data.max_prompts = 12

    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 200
    config.train.dropout_rate = 0.1
    config.train.z_loss = 1e-4
    # About five times through the 19 thousand paragraphs of the training set.
    config.train.steps = 3_000
    config.train.log_every_steps = 20
    config.evaluation.every_steps = 300
    config.evaluation.documents = 512
    config.checkpoint.every_steps = 300
    config.checkpoint.best_metric = "exact_match"
    return config

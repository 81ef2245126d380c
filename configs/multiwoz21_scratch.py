"""MultiWOZ 2.1 dialogue states with a small T5 from scratch: shows the whole path on a CPU.

    python train.py --config=configs/multiwoz21_scratch.py --workdir=runs/multiwoz \\
        --config.data.path=mwz2.1.zip

All values are our choice, made for two cores. A model of this size and no pretraining learns
the frequent slots, not the state of the art: see multiwoz21_t5_base.py.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration


def get_config() -> ConfigDict:
    config = configuration.default()
    config.tokenizer.vocab_size = 4096

    config.data.task = "multiwoz21"
    # A directory or zip: the release, ConvLab-2's, or what TRADE's create_data.py makes of it.
    config.data.path = ""
    config.data.document_tokens = 256
    config.data.prompt_tokens = 8
    config.data.target_tokens = 12
    # Padding costs less here than compiling one more length.
    config.data.document_multiple = 128
    config.data.batch_size = 16
    # Of 30 slots about 25 are "none". A tenth of those, and most of the rest, in each step.
    config.data.max_prompts = 8
    config.data.negative_rate = 0.1

    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_steps = 200
    config.optimizer.schedule = "rsqrt"
    config.train.steps = 20_000
    config.train.log_every_steps = 10
    config.evaluation.every_steps = 500
    config.evaluation.documents = 128
    config.checkpoint.every_steps = 100
    return config

"""SQuAD. The argument is VERSION,SIZE, for example `squad:2,t5_base`.

    python train.py --config=configs/squad.py:2,scratch --workdir=runs/squad2 \\
        --config.data.path=squad

VERSION (default: 2):
  2   SQuAD 2.0: config.data.path has train-v2.0.json and dev-v2.0.json
  1   SQuAD 1.1: config.data.path has train-v1.1.json and dev-v1.1.json

SIZE (default: scratch):
  scratch   a small T5 from scratch, which shows the whole path on a CPU. All values are our choice
            for two cores. Such a model is far from the state of the art.
  t5_base   T5-base, for a GPU or a TPU. multiwoz.py names the sources of the values. Lengths and
            steps are our choice. Not measured on an accelerator: where a step does not fit into
            memory, halve data.batch_size and double train.steps.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration

VERSIONS = ("2", "1")
SIZES = ("scratch", "t5_base")


def get_config(argument: str = "") -> ConfigDict:
    version, size = configuration.read_argument(argument, VERSION=VERSIONS, SIZE=SIZES)
    config = {"scratch": _scratch, "t5_base": _t5_base}[size]()
    config.data.task = f"squad{version}"
    return config


def _scratch() -> ConfigDict:
    config = configuration.default()
    config.tokenizer.vocab_size = 4096

    # A directory or zip with the two files of the version.
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


def _t5_base() -> ConfigDict:
    config = configuration.default()
    config.model.init = "google-t5/t5-base"

    # A directory or zip with the two files of the version.
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

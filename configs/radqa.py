"""RadQA. The argument is SIZE, for example `radqa:t5_base`.

    python train.py --config=configs/radqa.py:scratch --workdir=runs/radqa \\
        --config.data.path=radqa

config.data.path is a directory or zip with train.json, dev.json and test.json. PhysioNet gives them
to users with access.

SIZE (default: scratch) is scratch or t5_base, as in squad.py, which names the sources of the
values. Longer reports and answers and fewer steps are our choice. To start from a run on SQuAD 2.0:
--config.model.init=runs/squad2_t5_base.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration

SIZES = ("scratch", "t5_base")


def get_config(argument: str = "") -> ConfigDict:
    [size] = configuration.read_argument(argument, SIZE=SIZES)
    config = configuration.load(f"squad:2,{size}")
    config.data.task = "radqa"
    if size == "scratch":
        config.data.document_tokens = 512
        config.data.target_tokens = 48
        config.data.document_multiple = 128
        config.data.batch_size = 8
        config.train.steps = 5_000
    else:
        config.data.document_tokens = 1024
        config.data.target_tokens = 96
        config.data.batch_size = 16
        config.train.steps = 1_500
        config.evaluation.every_steps = 150
        config.checkpoint.every_steps = 150
    return config

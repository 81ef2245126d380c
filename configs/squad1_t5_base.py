"""SQuAD 1.1 with T5-base, for a GPU or a TPU.

    python train.py --config=configs/squad1_t5_base.py --workdir=runs/squad1_t5_base \\
        --config.data.path=squad

As squad2_t5_base.py, which reads train-v2.0.json and dev-v2.0.json; this one the files of 1.1.
"""

from ml_collections import ConfigDict

from configs import squad2_t5_base


def get_config() -> ConfigDict:
    config = squad2_t5_base.get_config()
    config.data.task = "squad1"
    return config

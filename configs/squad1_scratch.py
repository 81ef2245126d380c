"""SQuAD 1.1 with a small T5 from scratch: shows the whole path on a CPU.

    python train.py --config=configs/squad1_scratch.py --workdir=runs/squad1 \\
        --config.data.path=squad

As squad2_scratch.py, which reads train-v2.0.json and dev-v2.0.json; this one the files of 1.1.
"""

from ml_collections import ConfigDict

from configs import squad2_scratch


def get_config() -> ConfigDict:
    config = squad2_scratch.get_config()
    config.data.task = "squad1"
    return config

"""RadQA with a small T5 from scratch: shows the whole path on a CPU.

    python train.py --config=configs/radqa_scratch.py --workdir=runs/radqa \\
        --config.data.path=radqa

As squad2_scratch.py; longer reports and answers and fewer steps are our choice, too.
"""

from ml_collections import ConfigDict

from configs import squad2_scratch


def get_config() -> ConfigDict:
    config = squad2_scratch.get_config()
    config.data.task = "radqa"
    # config.data.path: a directory or zip with train.json, dev.json and test.json, which PhysioNet
    # gives to whoever has been granted access.
    config.data.document_tokens = 512
    config.data.target_tokens = 48
    config.data.document_multiple = 128
    config.data.batch_size = 8
    config.train.steps = 5_000
    return config

"""RadQA with T5-base, for a GPU or a TPU.

    python train.py --config=configs/radqa_t5_base.py --workdir=runs/radqa_t5_base \\
        --config.data.path=radqa

As squad2_t5_base.py, which says where the values come from. Our choice: longer reports and
answers, fewer steps for a smaller training set. To go on from a run on SQuAD 2.0:
--config.model.init=runs/squad2_t5_base.
"""

from ml_collections import ConfigDict

from configs import squad2_t5_base


def get_config() -> ConfigDict:
    config = squad2_t5_base.get_config()
    config.data.task = "radqa"
    # config.data.path: a directory or zip with train.json, dev.json and test.json, which PhysioNet
    # gives to whoever has been granted access.
    config.data.document_tokens = 1024
    config.data.target_tokens = 96
    config.data.batch_size = 16
    config.train.steps = 1_500
    config.evaluation.every_steps = 150
    config.checkpoint.every_steps = 150
    return config

"""MultiWOZ 2.3 dialogue states with T5-base, for a GPU or a TPU.

    python train.py --config=configs/multiwoz23_t5_base.py --workdir=runs/multiwoz23_t5_base \\
        --config.data.path=MultiWOZ_2.3

As multiwoz21_t5_base.py, which says where the values come from. The release comes without the
lists of its splits: put valListFile and testListFile of 2.1 beside its data.json.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_t5_base


def get_config() -> ConfigDict:
    config = multiwoz21_t5_base.get_config()
    config.data.task = "multiwoz23"
    return config

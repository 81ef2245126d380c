"""MultiWOZ 2.2 dialogue states with T5-base, for a GPU or a TPU.

    python train.py --config=configs/multiwoz22_t5_base.py --workdir=runs/multiwoz22_t5_base \\
        --config.data.path=MultiWOZ_2.2

As multiwoz21_t5_base.py, which says where the values come from. Its 35 slots are asked as the 30
of 2.1 are.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_t5_base


def get_config() -> ConfigDict:
    config = multiwoz21_t5_base.get_config()
    config.data.task = "multiwoz22"
    return config

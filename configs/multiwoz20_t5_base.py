"""MultiWOZ 2.0 dialogue states with T5-base, for a GPU or a TPU.

    python train.py --config=configs/multiwoz20_t5_base.py --workdir=runs/multiwoz20_t5_base \\
        --config.data.path=MULTIWOZ2.zip

As multiwoz21_t5_base.py, which says where the values come from.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_t5_base


def get_config() -> ConfigDict:
    config = multiwoz21_t5_base.get_config()
    config.data.task = "multiwoz20"
    return config

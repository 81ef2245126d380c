"""MultiWOZ 2.4 dialogue states with T5-base, for a GPU or a TPU.

    python train.py --config=configs/multiwoz24_t5_base.py --workdir=runs/multiwoz24_t5_base \\
        --config.data.path=MULTIWOZ2.4.zip

As multiwoz21_t5_base.py, which says where the values come from. Its training dialogues are those
of 2.1: what differs is how models are chosen and scored.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_t5_base


def get_config() -> ConfigDict:
    config = multiwoz21_t5_base.get_config()
    config.data.task = "multiwoz24"
    return config

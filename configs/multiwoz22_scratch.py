"""MultiWOZ 2.2 dialogue states with a small T5 from scratch, on a CPU.

    python train.py --config=configs/multiwoz22_scratch.py --workdir=runs/multiwoz22_scratch \\
        --config.data.path=MultiWOZ_2.2

As multiwoz21_scratch.py, which says where the values come from. Its 35 slots are asked as the 30
of 2.1 are.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_scratch


def get_config() -> ConfigDict:
    config = multiwoz21_scratch.get_config()
    config.data.task = "multiwoz22"
    return config

"""MultiWOZ 2.0 dialogue states with a small T5 from scratch, on a CPU.

    python train.py --config=configs/multiwoz20_scratch.py --workdir=runs/multiwoz20_scratch \\
        --config.data.path=MULTIWOZ2.zip

As multiwoz21_scratch.py, which says where the values come from.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_scratch


def get_config() -> ConfigDict:
    config = multiwoz21_scratch.get_config()
    config.data.task = "multiwoz20"
    return config

"""MultiWOZ 2.4 dialogue states with a small T5 from scratch, on a CPU.

    python train.py --config=configs/multiwoz24_scratch.py --workdir=runs/multiwoz24_scratch \\
        --config.data.path=MULTIWOZ2.4.zip

As multiwoz21_scratch.py, which says where the values come from. Its training dialogues are those
of 2.1: what differs is how models are chosen and scored.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_scratch


def get_config() -> ConfigDict:
    config = multiwoz21_scratch.get_config()
    config.data.task = "multiwoz24"
    return config

"""MultiWOZ 2.3 dialogue states with a small T5 from scratch, on a CPU.

    python train.py --config=configs/multiwoz23_scratch.py --workdir=runs/multiwoz23_scratch \\
        --config.data.path=MultiWOZ_2.3

As multiwoz21_scratch.py, which says where the values come from. The release comes without the
lists of its splits: put valListFile and testListFile of 2.1 beside its data.json.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_scratch


def get_config() -> ConfigDict:
    config = multiwoz21_scratch.get_config()
    config.data.task = "multiwoz23"
    return config

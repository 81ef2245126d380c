"""Schema-Guided Dialogue states with a small T5 from scratch, on a CPU.

    python train.py --config=configs/sgd_scratch.py --workdir=runs/sgd_scratch \\
        --config.data.path=dstc8-schema-guided-dialogue

As multiwoz21_scratch.py, which says where the values come from, but for what is below: our choice.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_scratch


def get_config() -> ConfigDict:
    config = multiwoz21_scratch.get_config()
    config.data.task = "sgd"
    # Most services of the test set are in no training dialogue: what their schema says of a slot
    # is all that tells what is asked.
    config.data.options = ConfigDict({"prompts": "both"})
    config.data.prompt_tokens = 32
    return config

"""Schema-Guided Dialogue states with T5-base, for a GPU or a TPU.

    python train.py --config=configs/sgd_t5_base.py --workdir=runs/sgd_t5_base \\
        --config.data.path=dstc8-schema-guided-dialogue

As multiwoz21_t5_base.py, which says where the values come from, but for what is below: our choice.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_t5_base


def get_config() -> ConfigDict:
    config = multiwoz21_t5_base.get_config()
    config.data.task = "sgd"
    # Most services of the test set are in no training dialogue: what their schema says of a slot
    # is all that tells what is asked.
    config.data.options = ConfigDict({"prompts": "both"})
    config.data.prompt_tokens = 32
    return config

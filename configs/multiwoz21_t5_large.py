"""MultiWOZ 2.1 dialogue states with T5-large, for a large GPU or TPUs.

As multiwoz21_t5_base.py, which says where the values come from. Our choice: half the documents
in a step, twice the steps, so that every turn is seen as often.
"""

from ml_collections import ConfigDict

from configs import multiwoz21_t5_base


def get_config() -> ConfigDict:
    config = multiwoz21_t5_base.get_config()
    config.model.init = "google-t5/t5-large"
    config.data.batch_size = 16
    config.train.steps = 34_000
    config.evaluation.every_steps = 2_000
    config.checkpoint.every_steps = 1_000
    return config

"""Schema-Guided Dialogue states. The argument is SIZE, for example `sgd:t5_base`.

    python train.py --config=configs/sgd.py:scratch --workdir=runs/sgd \\
        --config.data.path=dstc8-schema-guided-dialogue

SIZE (default: scratch) is scratch, t5_base or t5_large, as in multiwoz.py. That file names the
sources of the values, except for those below, which are our choice.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration

SIZES = ("scratch", "t5_base", "t5_large")


def get_config(argument: str = "") -> ConfigDict:
    [size] = configuration.read_argument(argument, SIZE=SIZES)
    config = configuration.load(f"multiwoz:21,{size}")
    config.data.task = "sgd"
    # Most services of the test set occur in no training dialogue: only the schema's description of
    # a slot tells the model about it.
    config.data.options = ConfigDict({"prompts": "both"})
    config.data.prompt_tokens = 32
    return config

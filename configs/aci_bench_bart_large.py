"""ACI-Bench notes with BART-large, for a GPU or a TPU.

As aci_bench_led_base.py, which says where the values come from; but BART has positions for 1,024
tokens: of longer conversations it reads the beginning.
"""

from ml_collections import ConfigDict

from configs import aci_bench_led_base


def get_config() -> ConfigDict:
    config = aci_bench_led_base.get_config()
    config.model.init = "facebook/bart-large"
    config.data.document_tokens = 1024
    return config

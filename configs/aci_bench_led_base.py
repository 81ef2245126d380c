"""ACI-Bench notes with LED-base, which has room for whole conversations; for a GPU or a TPU.

    python train.py --config=configs/aci_bench_led_base.py --workdir=runs/aci_bench_led_base \\
        --config.data.path=aci-bench

AdamW at 3e-5 with label smoothing 0.1 is how BART, LED's decoder, was fine-tuned to summarise
(Lewis et al., arXiv 1910.13461, section 5.3, and the authors' scripts). Else as
aci_bench_t5_base.py. Not measured on an accelerator.
"""

from ml_collections import ConfigDict

from configs import aci_bench_t5_base


def get_config() -> ConfigDict:
    config = aci_bench_t5_base.get_config()
    config.model.init = "allenai/led-base-16384"
    # Its tokenizer knows line breaks.
    config.data.options = ConfigDict()
    config.data.document_tokens = 4096
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-5
    config.train.label_smoothing = 0.1
    return config

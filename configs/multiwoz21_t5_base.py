"""MultiWOZ 2.1 dialogue states with T5-base, for a GPU or a TPU.

    python train.py --config=configs/multiwoz21_t5_base.py --workdir=runs/multiwoz_t5_base \\
        --config.data.path=mwz2.1.zip

Where the values come from:
  optimizer, learning rate, dropout   Raffel et al., arXiv 1910.10683, section 3.1.2: fine-tuning
                                      by Adafactor at a constant rate of 0.001, dropout 0.1
  z-loss                              the value that T5 itself was trained with
  all others                          our choice; the paper on prompt-in-decoder (Lu et al.,
                                      arXiv 2403.13112) came without code or configuration

t5-base is named because its weights are published as safetensors. `config.model.init` takes any
T5 1.0, 1.1, Flan-T5 or mT5 checkpoint that is (others are refused with how to convert them); 1.1
was pretrained without dropout and needs more steps. How much memory a step takes was not measured
on an accelerator: where it does not fit, halve data.batch_size and double train.steps.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration


def get_config() -> ConfigDict:
    config = configuration.default()
    config.model.init = "google-t5/t5-base"

    config.data.task = "multiwoz21"
    # A directory or zip: the release, ConvLab-2's, or what TRADE's create_data.py makes of it.
    config.data.path = ""
    # Longer dialogues lose their first turns; the run says how many do.
    config.data.document_tokens = 512
    config.data.prompt_tokens = 16
    config.data.target_tokens = 24
    # Few lengths: each is a program to compile, and this one takes a while.
    config.data.document_multiple = 128
    config.data.batch_size = 32
    # Of 30 slots about 25 are "none": a fifth of those, and nearly all of the rest, in each step.
    config.data.max_prompts = 12
    config.data.negative_rate = 0.2

    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 500
    config.train.dropout_rate = 0.1
    config.train.z_loss = 1e-4
    # About ten times through the 55 thousand turns of the training dialogues.
    config.train.steps = 17_000
    config.train.log_every_steps = 50
    config.evaluation.every_steps = 1_000
    config.evaluation.documents = 1_024
    config.checkpoint.every_steps = 500
    return config

"""MultiWOZ dialogue states. The argument is RELEASE,SIZE, for example `multiwoz:21,t5_base`.

    python train.py --config=configs/multiwoz.py:21,scratch --workdir=runs/multiwoz \\
        --config.data.path=mwz2.1.zip

RELEASE (default: 21), with the files that config.data.path names:
  20   MultiWOZ 2.0, such as MULTIWOZ2.zip
  21   MultiWOZ 2.1, such as mwz2.1.zip
  22   MultiWOZ 2.2, such as MultiWOZ_2.2, with 35 slots instead of 30
  23   MultiWOZ 2.3, such as MultiWOZ_2.3. The release has no lists of its splits: copy valListFile
       and testListFile of 2.1 into the directory of its data.json.
  24   MultiWOZ 2.4, such as MULTIWOZ2.4.zip. Its training dialogues are those of 2.1: only the
       choice of a checkpoint and the scores differ.

SIZE (default: scratch):
  scratch    a small T5 from scratch, which shows the whole path on a CPU. All values are our choice
             for two cores. Such a model learns the frequent slots, not the state of the art.
  t5_base    T5-base, for a GPU or a TPU
  t5_large   T5-large, for a large GPU or TPUs. Our choice: half the documents in a step and twice
             the steps, so that training sees every turn as often.

Sources of the values for t5_base and t5_large:
  optimizer, learning rate, dropout   Raffel et al., arXiv 1910.10683, section 3.1.2: fine-tuning
                                      by Adafactor at a constant rate of 0.001, dropout 0.1
  z-loss                              the value that T5 itself was trained with
  all others                          our choice. The paper on prompt-in-decoder (Lu et al.,
                                      arXiv 2403.13112) came without code or configuration.

The file names t5-base because its weights are published as safetensors. `config.model.init` takes
any such checkpoint of T5 1.0, 1.1, Flan-T5 or mT5, and an error says how to convert others. T5 1.1
was pretrained without dropout and needs more steps. The memory of a step was not measured on an
accelerator: where it does not fit, halve data.batch_size and double train.steps.
"""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration

RELEASES = ("21", "20", "22", "23", "24")
SIZES = ("scratch", "t5_base", "t5_large")


def get_config(argument: str = "") -> ConfigDict:
    release, size = configuration.read_argument(argument, RELEASE=RELEASES, SIZE=SIZES)
    config = {"scratch": _scratch, "t5_base": _t5_base, "t5_large": _t5_large}[size]()
    config.data.task = f"multiwoz{release}"
    return config


def _scratch() -> ConfigDict:
    config = configuration.default()
    config.tokenizer.vocab_size = 4096

    # A directory or zip: the release, ConvLab-2's, or the output of TRADE's create_data.py.
    config.data.path = ""
    config.data.document_tokens = 256
    config.data.prompt_tokens = 8
    config.data.target_tokens = 12
    # Padding costs less here than compiling one more length.
    config.data.document_multiple = 128
    config.data.batch_size = 16
    # About 25 of 30 slots are "none". Each step has a tenth of those and most of the rest.
    config.data.max_prompts = 8
    config.data.negative_rate = 0.1

    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_steps = 200
    config.optimizer.schedule = "rsqrt"
    config.train.steps = 20_000
    config.train.log_every_steps = 10
    config.evaluation.every_steps = 500
    config.evaluation.documents = 128
    config.checkpoint.every_steps = 100
    return config


def _t5_base() -> ConfigDict:
    config = configuration.default()
    config.model.init = "google-t5/t5-base"

    # A directory or zip: the release, ConvLab-2's, or the output of TRADE's create_data.py.
    config.data.path = ""
    # Longer dialogues lose their first turns, and the log says how many do.
    config.data.document_tokens = 512
    config.data.prompt_tokens = 16
    config.data.target_tokens = 24
    # Few lengths: each is a program to compile, and this one takes a while.
    config.data.document_multiple = 128
    config.data.batch_size = 32
    # About 25 of 30 slots are "none". Each step has a fifth of those and nearly all of the rest.
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


def _t5_large() -> ConfigDict:
    config = _t5_base()
    config.model.init = "google-t5/t5-large"
    config.data.batch_size = 16
    config.train.steps = 34_000
    config.evaluation.every_steps = 2_000
    config.checkpoint.every_steps = 1_000
    return config

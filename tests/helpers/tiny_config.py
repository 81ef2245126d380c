"""A run of seconds: a toy T5 on a few synthetic dialogues, all batches of one shape."""

from ml_collections import ConfigDict

from pid_jax.training import config as configuration


def get_config() -> ConfigDict:
    config = configuration.default()
    config.model.architecture.d_model = 16
    config.model.architecture.d_kv = 8
    config.model.architecture.d_ff = 24
    config.model.architecture.num_heads = 2
    config.model.architecture.num_layers = 1
    config.model.architecture.num_decoder_layers = 1
    config.tokenizer.vocab_size = 300
    config.data.options = ConfigDict({"train_dialogues": 30, "validation_dialogues": 8})
    config.data.document_tokens = 64
    config.data.batch_size = 4
    config.data.max_prompts = 4
    config.data.negative_rate = 0.2
    config.data.packing = False
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 4
    config.train.steps = 24
    config.train.log_every_steps = 4
    config.train.loggers = ()  # that of TensorBoard imports torch, which takes two seconds
    config.evaluation.every_steps = 8
    config.evaluation.documents = 16
    config.checkpoint.every_steps = 5
    return config

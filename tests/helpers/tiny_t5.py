"""A small T5 `config.json`, whose programs compile in a second."""

TINY = {
    "model_type": "t5",
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.1,
}

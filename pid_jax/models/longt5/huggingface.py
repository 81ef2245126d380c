"""LongT5's Hugging Face tensor names, and its entry in the registry."""

from pid_jax.models.longt5.configuration import ATTENTION_NAMES, LongT5Config
from pid_jax.models.longt5.modules import LongT5
from pid_jax.models.protocol import About, Family, TensorPath
from pid_jax.models.t5 import huggingface as t5_names


def tensors(config: LongT5Config) -> dict[str, TensorPath]:
    name = ATTENTION_NAMES[config.encoder_attention_type]
    paths = t5_names.tensors(config, encoder_attention=name)
    bias = f"encoder.block.0.layer.0.{name}.relative_attention_bias.weight"
    paths[bias] = TensorPath(("encoder", "relative_position_bias", "embedding"))
    if config.encoder_attention_type == "transient-global":
        bias = bias.replace("relative_attention", "global_relative_attention")
        paths[bias] = TensorPath(("encoder", "global_relative_position_bias", "embedding"))
        for i in range(config.num_layers):
            block_norm = f"encoder.block.{i}.layer.0.{name}.global_input_layer_norm.weight"
            path = ("encoder", f"layers_{i}", "self_attention", "global_input_norm", "scale")
            paths[block_norm] = TensorPath(path)
    return paths


FAMILY = Family(
    about=About(
        "LongT5",
        "local and transient-global attention",
        "long-t5-tglobal-xl",
        {
            "model_type": "longt5",
            "encoder_attention_type": "transient-global",
            "vocab_size": 32128,
            "d_model": 2048,
            "d_kv": 64,
            "d_ff": 5120,
            "num_layers": 24,
            "num_decoder_layers": 24,
            "num_heads": 32,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    model_types=("longt5",),
    config_from_hf=LongT5Config.from_hf,
    module=LongT5,
    tensors=tensors,
    aliases=t5_names.ALIASES,
    ignored=t5_names.IGNORED,
)

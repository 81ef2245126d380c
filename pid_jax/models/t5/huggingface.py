"""T5's Hugging Face tensor names, and its entry in the registry."""

from collections.abc import Mapping

from pid_jax.models.protocol import About, Family, TensorPath
from pid_jax.models.t5.configuration import T5Config, T5LikeConfig
from pid_jax.models.t5.modules import T5


def tensors(
    config: T5LikeConfig, encoder_attention: str = "SelfAttention"
) -> dict[str, TensorPath]:
    """Each tensor's path. encoder_attention: Hugging Face's name of the encoder's attention."""
    paths = {"shared.weight": TensorPath(("shared", "embedding"))}
    if not config.tie_word_embeddings:
        paths["lm_head.weight"] = TensorPath(("lm_head", "kernel"), transposed=True)
    attention = {"q": "query", "k": "key", "v": "value", "o": "output"}
    forward = ("wi_0", "wi_1", "wo") if config.is_gated_act else ("wi", "wo")
    stacks = {
        "encoder": (config.num_layers, {encoder_attention: "self_attention"}),
        "decoder": (
            config.num_decoder_layers,
            {"SelfAttention": "self_attention", "EncDecAttention": "cross_attention"},
        ),
    }
    for stack, (layers, attentions) in stacks.items():
        paths[f"{stack}.final_layer_norm.weight"] = TensorPath((stack, "final_norm", "scale"))
        for i in range(layers):
            layer = (stack, f"layers_{i}")
            for j, (theirs, ours) in enumerate(attentions.items()):
                block = f"{stack}.block.{i}.layer.{j}"
                norm = TensorPath((*layer, f"{ours}_norm", "scale"))
                paths[f"{block}.layer_norm.weight"] = norm
                for letter, name in attention.items():
                    kernel = TensorPath((*layer, ours, name, "kernel"), transposed=True)
                    paths[f"{block}.{theirs}.{letter}.weight"] = kernel
            block = f"{stack}.block.{i}.layer.{len(attentions)}"
            norm = TensorPath((*layer, "feed_forward_norm", "scale"))
            paths[f"{block}.layer_norm.weight"] = norm
            for name in forward:
                kernel = TensorPath((*layer, "feed_forward", name, "kernel"), transposed=True)
                paths[f"{block}.DenseReluDense.{name}.weight"] = kernel
            if i == 0 or config.bias_in_every_layer:
                own = next(iter(attentions))
                bias = f"{stack}.block.{i}.layer.0.{own}.relative_attention_bias.weight"
                path = (stack, f"relative_position_bias_{i}", "embedding")
                paths[bias] = TensorPath(path)
    return paths


ALIASES: Mapping[str, str] = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}
"""See `Family.aliases`."""
IGNORED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})
"""The first T5 checkpoints carry a cross-attention bias that their model never used."""

FAMILY = Family(
    about=About(
        "T5",
        "T5, T5 1.1, Flan-T5, ByT5, mT5, UMT5",
        "mt5-xxl",
        {
            "model_type": "mt5",
            "vocab_size": 250112,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "tie_word_embeddings": False,
        },
    ),
    model_types=("t5", "mt5", "umt5"),
    config_from_hf=T5Config.from_hf,
    module=T5,
    tensors=tensors,
    aliases=ALIASES,
    ignored=IGNORED,
)

"""T5Gemma's Hugging Face tensor names, and its entry in the registry."""

from collections.abc import Mapping

from pid_jax.models.protocol import About, Family, TensorPath
from pid_jax.models.t5gemma.configuration import HEAD, GemmaStackConfig, T5GemmaConfig
from pid_jax.models.t5gemma.modules import T5Gemma


def stack_tensors(
    config: GemmaStackConfig,
    stack: str,
    attentions: Mapping[str, str],
    query_key_norms: bool = False,
) -> dict[str, TensorPath]:
    """The paths of one stack's tensors, but for its embeddings.

    attentions: Hugging Face's names of each layer's attentions, and ours.
    """
    paths = {f"model.{stack}.norm.weight": TensorPath((stack, "final_norm", "scale"))}
    kernels = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
    feed_forward = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    for i in range(config.num_hidden_layers):
        name, path = f"model.{stack}.layers.{i}", (stack, f"layers_{i}")
        blocks = {theirs: (ours, kernels) for theirs, ours in attentions.items()}
        blocks["mlp"] = ("feed_forward", feed_forward)
        for block, (ours, parts) in blocks.items():
            norm_name = "feedforward" if block == "mlp" else block
            for when, suffix in (("pre", "norm"), ("post", "post_norm")):
                path_of = TensorPath((*path, f"{ours}_{suffix}", "scale"))
                paths[f"{name}.{when}_{norm_name}_layernorm.weight"] = path_of
            for letter, part in parts.items():
                path_of = TensorPath((*path, ours, part, "kernel"), transposed=True)
                paths[f"{name}.{block}.{letter}.weight"] = path_of
            if query_key_norms and block != "mlp":
                for letter, part in (("q", "query"), ("k", "key")):
                    path_of = TensorPath((*path, ours, f"{part}_norm", "scale"))
                    paths[f"{name}.{block}.{letter}_norm.weight"] = path_of
    return paths


def tensors(config: T5GemmaConfig) -> dict[str, TensorPath]:
    paths = {
        f"model.{stack}.embed_tokens.weight": TensorPath((f"{stack}_embedding", "embedding"))
        for stack in ("encoder", "decoder")
    }
    if not config.tie_word_embeddings:
        paths[HEAD] = TensorPath(("lm_head", "kernel"), transposed=True)
    attentions = {"self_attn": "self_attention"}
    paths |= stack_tensors(config.encoder, "encoder", attentions)
    attentions["cross_attn"] = "cross_attention"
    paths |= stack_tensors(config.decoder, "decoder", attentions)
    return paths


_9B = {
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}

FAMILY = Family(
    about=About(
        "T5Gemma",
        "all sizes, balanced or not",
        "t5gemma-9b-9b",
        {"model_type": "t5gemma", "encoder": _9B, "decoder": _9B},
    ),
    model_types=("t5gemma",),
    config_from_hf=T5GemmaConfig.from_hf,
    module=T5Gemma,
    tensors=tensors,
    aliases={HEAD: "model.decoder.embed_tokens.weight"},
    ignored=frozenset(),
    prefix="model.",
)

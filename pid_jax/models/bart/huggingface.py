"""Hugging Face tensor names of BART and its relatives, and the entries of BART and mBART."""

import functools

import numpy as np

from pid_jax.models.bart.configuration import BartConfig, BartLikeConfig, MBartConfig
from pid_jax.models.bart.modules import BartLike
from pid_jax.models.positions import sinusoids
from pid_jax.models.protocol import About, Family, TensorPath

_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}


def linear_tensors(theirs: str, *ours: str) -> dict[str, TensorPath]:
    """Kernel and bias of one `Dense`."""
    return {
        f"{theirs}.weight": TensorPath((*ours, "kernel"), transposed=True),
        f"{theirs}.bias": TensorPath((*ours, "bias")),
    }


def norm_tensors(theirs: str, *ours: str) -> dict[str, TensorPath]:
    """Scale and bias of one `LayerNorm`."""
    return {
        f"{theirs}.weight": TensorPath((*ours, "scale")),
        f"{theirs}.bias": TensorPath((*ours, "bias")),
    }


def attention_tensors(theirs: str, *ours: str) -> dict[str, TensorPath]:
    """All of one `BartAttention`."""
    paths: dict[str, TensorPath] = {}
    for projection, name in _PROJECTIONS.items():
        paths |= linear_tensors(f"{theirs}.{projection}", *ours, name)
    return paths


def stack_tensors(config: BartLikeConfig, stack: str, prefix: str) -> dict[str, TensorPath]:
    """All of the "encoder" or the "decoder"."""
    theirs = f"{prefix}{stack}"
    table = "sinusoids" if config.sinusoidal else "embedding"
    paths = {f"{theirs}.embed_positions.weight": TensorPath((stack, "positions", table))}
    if config.embedding_norm:
        paths |= norm_tensors(f"{theirs}.layernorm_embedding", stack, "embedding_norm")
    if config.final_norm:
        paths |= norm_tensors(f"{theirs}.layer_norm", stack, "final_norm")
    attentions = {"self_attn": "self_attention"}
    if stack == "decoder":
        attentions["encoder_attn"] = "cross_attention"
    for i in range(config.encoder_layers if stack == "encoder" else config.decoder_layers):
        layer, path = f"{theirs}.layers.{i}", (stack, f"layers_{i}")
        for name, ours in attentions.items():
            paths |= attention_tensors(f"{layer}.{name}", *path, ours)
            paths |= norm_tensors(f"{layer}.{name}_layer_norm", *path, f"{ours}_norm")
        paths |= linear_tensors(f"{layer}.fc1", *path, "feed_forward", "wi")
        paths |= linear_tensors(f"{layer}.fc2", *path, "feed_forward", "wo")
        paths |= norm_tensors(f"{layer}.final_layer_norm", *path, "feed_forward_norm")
    return paths


def tensors(config: BartLikeConfig, prefix: str = "model.") -> dict[str, TensorPath]:
    """Each tensor's path, by its Hugging Face name."""
    embedding = TensorPath(("shared", "embedding"))
    paths = {
        f"{prefix}shared.weight": embedding,
        "final_logits_bias": TensorPath(("final_logits_bias",)),
    }
    if not config.tie_word_embeddings:
        # Where nothing is tied, transformers takes each of these from the checkpoint.
        paths[f"{prefix}encoder.embed_tokens.weight"] = embedding
        paths[f"{prefix}decoder.embed_tokens.weight"] = embedding
        paths["lm_head.weight"] = TensorPath(("lm_head", "kernel"), transposed=True)
    return (
        paths | stack_tensors(config, "encoder", prefix) | stack_tensors(config, "decoder", prefix)
    )


def family(
    config: type[BartLikeConfig], about: About, *model_types: str, prefix: str = "model."
) -> Family:
    """The registry's entry of a family that differs from the others by its configuration alone.

    prefix: of its tensors' names.
    """
    defaults = {"final_logits_bias": _zeros}
    if config.sinusoidal:
        for stack in ("encoder", "decoder"):
            defaults[f"{prefix}{stack}.embed_positions.weight"] = sinusoids
    return Family(
        about=about,
        model_types=model_types,
        config_from_hf=config.from_hf,
        module=BartLike,
        tensors=functools.partial(tensors, prefix=prefix),
        aliases={
            f"{prefix}encoder.embed_tokens.weight": f"{prefix}shared.weight",
            f"{prefix}decoder.embed_tokens.weight": f"{prefix}shared.weight",
            "lm_head.weight": f"{prefix}shared.weight",
        },
        ignored=frozenset({f"{prefix}encoder.version", f"{prefix}decoder.version"}),
        defaults=defaults,
        prefix=prefix,
    )


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


_BART = About(
    "BART",
    "BART",
    "bart-large",
    {
        "model_type": "bart",
        "vocab_size": 50265,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "max_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
    },
)

FAMILY = family(BartConfig, _BART, "bart")

_MBART = About(
    "mBART",
    "mBART, mBART-50",
    "mbart-large-50",
    {
        "model_type": "mbart",
        "vocab_size": 250054,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "max_position_embeddings": 1024,
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
    },
)

MBART_FAMILY = family(MBartConfig, _MBART, "mbart")

"""The sizes of published checkpoints, so that programs can be compiled from shapes alone.

Read from the `config.json` of each checkpoint. The values that matter for shapes are here.
"""

from collections.abc import Mapping
from typing import Any

from pid_jax.errors import UserError


def _t5(d_model: int, d_kv: int, d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    """T5 1.0 (Raffel et al., arXiv 1910.10683)."""
    return {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": d_model,
        "d_kv": d_kv,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
    }


def _gated(d_model: int, d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    """T5 1.1 and Flan-T5: a gated feed-forward layer and a head of its own."""
    return _t5(d_model, 64, d_ff, layers, heads) | {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def _long(d_model: int, d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    """LongT5 with transient-global attention (Guo et al., arXiv 2112.07916)."""
    return _gated(d_model, d_ff, layers, heads) | {
        "model_type": "longt5",
        "encoder_attention_type": "transient-global",
    }


def _bart(
    model_type: str, vocabulary: int, d_model: int, layers: int, heads: int, **more: Any
) -> dict[str, Any]:
    """BART (Lewis et al., arXiv 1910.13461) and its relatives."""
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * d_model,
        "decoder_ffn_dim": 4 * d_model,
        "max_position_embeddings": 1024,
        **more,
    }


def _gemma(hidden: int, intermediate: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    """One stack of T5Gemma: Gemma 2 (arXiv 2408.00118, table 1)."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "vocab_size": 256000,
    }


_2B, _9B = _gemma(2304, 9216, 26, 8, 4), _gemma(3584, 14336, 42, 16, 8)
_LONG_POSITIONS = {
    "max_encoder_position_embeddings": 16384,
    "max_decoder_position_embeddings": 1024,
    "attention_window": 1024,
}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "t5-small": _t5(512, 64, 2048, 6, 8),
    "t5-base": _t5(768, 64, 3072, 12, 12),
    "t5-large": _t5(1024, 64, 4096, 24, 16),
    "t5-3b": _t5(1024, 128, 16384, 24, 32),
    "t5-11b": _t5(1024, 128, 65536, 24, 128),
    "flan-t5-small": _gated(512, 1024, 8, 6),
    "flan-t5-base": _gated(768, 2048, 12, 12),
    "flan-t5-large": _gated(1024, 2816, 24, 16),
    "flan-t5-xl": _gated(2048, 5120, 24, 32),
    "flan-t5-xxl": _gated(4096, 10240, 24, 64),
    "long-t5-tglobal-base": _long(768, 2048, 12, 12),
    "long-t5-tglobal-large": _long(1024, 2816, 24, 16),
    "long-t5-tglobal-xl": _long(2048, 5120, 24, 32),
    "bart-base": _bart("bart", 50265, 768, 6, 12),
    "bart-large": _bart("bart", 50265, 1024, 12, 16),
    "pegasus-large": _bart("pegasus", 96103, 1024, 16, 16),
    "led-base-16384": _bart("led", 50265, 768, 6, 12, **_LONG_POSITIONS),
    "led-large-16384": _bart("led", 50265, 1024, 12, 16, **_LONG_POSITIONS),
    "t5gemma-2b-2b": {"model_type": "t5gemma", "encoder": _2B, "decoder": _2B},
    "t5gemma-9b-2b": {"model_type": "t5gemma", "encoder": _9B, "decoder": _2B},
    "t5gemma-9b-9b": {"model_type": "t5gemma", "encoder": _9B, "decoder": _9B},
}


def find(name: str) -> Mapping[str, Any] | None:
    """The sizes of a checkpoint by its name or hub id: `t5-base`, `google-t5/t5-base`."""
    last = name.rstrip("/").rpartition("/")[2].lower().removesuffix("-it")
    last = last.removesuffix("-ul2").removesuffix("-prefixlm")
    return ARCHITECTURES.get(last)


def get(name: str) -> Mapping[str, Any]:
    """The sizes of a checkpoint. Raises `UserError` with all names for an unknown one."""
    sizes = find(name)
    if sizes is None:
        raise UserError(
            f"--architecture={name} is unknown; choose from {', '.join(ARCHITECTURES)}, or name a "
            "config.json with --checkpoint"
        )
    return sizes

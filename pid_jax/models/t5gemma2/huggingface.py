"""T5Gemma 2's Hugging Face tensor names, and its entry in the registry.

Published checkpoints also have a vision tower. What texts need does not depend on it, so its
tensors are not read. Tokens that stand for images are refused.
"""

from pid_jax.models.protocol import About, Family, TensorPath
from pid_jax.models.t5gemma.huggingface import stack_tensors
from pid_jax.models.t5gemma2.configuration import T5Gemma2Config
from pid_jax.models.t5gemma2.modules import T5Gemma2

_NO_IMAGES = (
    "which stands for an image: of T5Gemma 2 only the text part is supported, not its vision tower"
)


def tensors(config: T5Gemma2Config) -> dict[str, TensorPath]:
    return {
        "model.encoder.embed_tokens.weight": TensorPath(("shared", "embedding")),
        "model.encoder.embed_tokens.eoi_embedding": TensorPath(("eoi_embedding",)),
        **stack_tensors(
            config.encoder, "encoder", {"self_attn": "self_attention"}, query_key_norms=True
        ),
        **stack_tensors(
            config.decoder, "decoder", {"self_attn": "attention"}, query_key_norms=True
        ),
    }


def _rename(name: str) -> str | None:
    """transformers' modules have the encoder's layers in a `text_model`, its files have not."""
    if "encoder.vision_tower." in name or "encoder.multi_modal_projector." in name:
        return None
    return name.replace("encoder.text_model.", "encoder.", 1)


def _module_name(name: str) -> str:
    return name.replace("encoder.", "encoder.text_model.", 1)


def _unreadable_tokens(config: T5Gemma2Config) -> dict[int, str]:
    return {config.boi_token_index: _NO_IMAGES, config.image_token_index: _NO_IMAGES}


_4B = {
    "vocab_size": 262144,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}

FAMILY = Family(
    about=About(
        "T5Gemma 2",
        "text only: a vision tower is left out, and images are refused",
        "t5gemma-2-4b-4b",
        {"model_type": "t5gemma2", "encoder": {"text_config": _4B}, "decoder": _4B},
    ),
    model_types=("t5gemma2",),
    config_from_hf=T5Gemma2Config.from_hf,
    module=T5Gemma2,
    tensors=tensors,
    aliases={
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.eoi_embedding": "model.encoder.embed_tokens.eoi_embedding",
        "lm_head.out_proj.weight": "model.encoder.embed_tokens.weight",
    },
    ignored=frozenset(),
    prefix="model.",
    rename=_rename,
    module_name=_module_name,
    unreadable_tokens=_unreadable_tokens,
)

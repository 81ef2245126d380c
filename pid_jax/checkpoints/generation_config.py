"""Keys of a checkpoint's generation configuration.

transformers stores it in `generation_config.json`, in older checkpoints in `config.json`. If the
former exists, the latter is ignored. `pid_jax.inference.generation_defaults` interprets the keys.
"""

from collections.abc import Mapping
from typing import Any

FILE = "generation_config.json"

ABOUT_ITSELF = ("transformers_version", "_from_model_config", "_commit_hash")
"""Metadata keys."""
OF_CONFIG = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Keys that are part of the architecture's configuration."""
LENGTHS = ("max_length", "min_length", "max_new_tokens", "min_new_tokens")
HONOURED = (
    *LENGTHS,
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_return_sequences",
    "do_sample",
    "stop_strings",
)
"""Keys that `GenerationOptions` has, besides the options of logits processors."""
CHANGING_OUTPUTS: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1.0,),
    "top_k": (50, 0),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "bad_words_ids": (),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "renormalize_logits": (False,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": (),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "diversity_penalty": (0.0,),
    "num_beam_groups": (1,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "max_time": (),
    "token_healing": (False,),
}
"""Unsupported keys that can change outputs in transformers, and their values without effect."""
WITHOUT_EFFECT = (
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "low_memory",
    "use_mtp",
    "remove_invalid_values",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
    "assistant_ensemble_weight",
    "speculation_type",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "prefill_chunk_size",
)
"""Keys that affect how transformers computes or which additional values it returns."""

_KNOWN = {*OF_CONFIG, *HONOURED, *CHANGING_OUTPUTS, *WITHOUT_EFFECT}


def of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The generation keys of a `config.json`, for checkpoints without generation_config.json.

    Follows transformers' `GenerationConfig.from_model_config`: nulls are left out, and keys of the
    outer configuration override those of its section "decoder" (T5Gemma). `task_specific_params`
    have no effect in either.
    """
    generation: dict[str, Any] = {}
    for section in (config.get("decoder"), config):
        if isinstance(section, Mapping):
            generation |= {k: v for k, v in section.items() if k in _KNOWN and v is not None}
    return generation

"""Every decoder of the installed transformers, built tiny and with random weights.

transformers is asked for its model types; none is listed here. The default configuration of a type
says which sizes it has, and small values replace them. The model keeps a layer of each kind that
the default has. `SPECIAL` holds what a type needs beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kvpolicy.testing.models import SIZES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LARGEST = 20_000_000
"""A model with more parameters does not count as tiny."""
LAYERS = 4
SHARED = "num_kv_shared_layers"
"""The setting of types whose layers can share keys and values."""

_MORE_SIZES: Mapping[str, Any] = {
    "ffn_hidden_size": 48,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "sliding_window": 16,
    "attention_chunk_size": 16,
    "bos_token_id": 1,
    "moe_topk": 2,
    "moe_num_experts": 4,
    "moe_k": 2,
    "rotary_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
    "is_decoder": True,
}
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
        "activation_sparsity_pattern": None,
        "num_kv_shared_layers": 0,
    },
    # These do not scale their logits down, which multiplies rounding.
    "gemma4_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
        "initializer_range": 0.05,
    },
    "gemma4_unified_text": {"initializer_range": 0.05},
    "gpt_neo": {"attention_types": [[["global"], LAYERS]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    # Small weights keep rounding small. These two models multiply it: the first runs each layer
    # many times, the second has layers with a recurrent state.
    "hrm_text": {"initializer_range": 0.1},
    "qwen3_5_text": {"initializer_range": 0.2},
    # These do not scale their logits down, which multiplies rounding as well.
    "granitemoe": {"initializer_range": 0.2},
    "granitemoeshared": {"initializer_range": 0.2},
    "granite_swa": {"initializer_range": 0.2},
    "granitemoe_swa": {"initializer_range": 0.2},
    # Its bias by distance ends within the prompts.
    "inkling_text": {
        "rel_extent": 20,
        "d_rel": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
    },
    "ministral": {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "longcat_flash": {"num_layers": LAYERS // 2, "zero_expert_num": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}


def model_types() -> list[str]:
    """Return every model type with a causal language model that is no encoder-decoder."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if not getattr(CONFIG_MAPPING[name], "is_encoder_decoder", False)
    ]


def variants(model_type: str) -> dict[str, dict[str, Any]]:
    """Return how a type is built, by the subject of its line: where layers can share keys, twice.

    >>> variants("llama")
    {'llama': {}}
    """
    from transformers import AutoConfig

    text = AutoConfig.for_model(model_type).get_text_config(decoder=True)
    found: dict[str, dict[str, Any]] = {model_type: {}}
    if text.model_type == model_type and SHARED in text.to_dict():
        found[f"{model_type}, layers share"] = {SHARED: LAYERS // 2}
    return found


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Return a small configuration of the decoder of a model type."""
    from transformers import AutoConfig

    found = AutoConfig.for_model(model_type)
    text = found.get_text_config(decoder=True)
    own = set(text.to_dict())
    names = getattr(text, "attribute_map", {})
    sizes = {**SIZES, **_MORE_SIZES, "num_hidden_layers": LAYERS}
    small = {
        names.get(name, name): size
        for name, size in sizes.items()
        if name in own or names.get(name) in own
    }
    small |= (
        _layers_of_every_kind(text) | _latent_heads(text) | dict(SPECIAL.get(text.model_type, {}))
    )
    return AutoConfig.for_model(text.model_type, **small | changes)


def _layers_of_every_kind(config: PreTrainedConfig) -> dict[str, Any]:
    """Return `layer_types` in which the kinds of the default take turns.

    If all layers of the default have sliding windows, full attention replaces them.
    """
    name = getattr(config, "attribute_map", {}).get("layer_types", "layer_types")
    derived = isinstance(getattr(type(config), name, None), property)
    if derived:
        return {}
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    windowed = hasattr(config, "sliding_window")
    if kinds == ["sliding_attention"]:
        return {"sliding_window": None, "layer_types": ["full_attention"] * LAYERS}
    if not kinds:
        return {"sliding_window": None} if windowed else {}
    return {"layer_types": (kinds * LAYERS)[:LAYERS]}


def _latent_heads(config: PreTrainedConfig) -> dict[str, Any]:
    """Return sizes of heads that go together in latent attention."""
    if config.to_dict().get("kv_lora_rank") is None:
        return {}
    return {"head_dim": 4, "num_key_value_heads": 4}


def tiny_architecture(
    model_type: str, *, seed: int = 0, attn_implementation: str = "sdpa", **changes: Any
) -> PreTrainedModel:
    """Return a random model of a type: float32, on the CPU, in evaluation mode.

    `changes` are fields of its configuration.

    Raises ValueError if even the smallest model of the type is not tiny, and what transformers
    raises if it cannot build the type.
    """
    from transformers import AutoModelForCausalLM

    config = tiny_config(model_type, **changes)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"the smallest {model_type} has {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=attn_implementation, dtype=torch.float32
        )
    model.eval()
    return model

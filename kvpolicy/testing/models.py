"""Tiny models of real architectures, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kvpolicy.errors import InvalidValueError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    # Weights this large make attention uneven, so that a wrong position changes the logits.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 16, "num_hidden_layers": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        "sliding_window": 16,
        "num_hidden_layers": 4,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "olmo2": {},
    "granite": {},
    "phi3": {},
}
"""What each family sets beyond `SIZES`."""


def tiny_model(
    family: str = "llama", *, seed: int = 0, attn_implementation: str = "sdpa", **config: Any
) -> PreTrainedModel:
    """Return a random model of a family: float32, on the CPU, in evaluation mode.

    The same seed gives the same weights; the global random state stays as it is. `config` replaces
    entries of the model's configuration.

    >>> tiny_model("qwen3").config.num_key_value_heads
    2
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if family not in FAMILIES:
        raise InvalidValueError(
            f"no tiny model of family {family!r}.{suggest(family, FAMILIES)} "
            f"Families: {', '.join(FAMILIES)}."
        )
    configuration = AutoConfig.for_model(family, **dict(SIZES) | dict(FAMILIES[family]) | config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            configuration, attn_implementation=attn_implementation, dtype=torch.float32
        )
    model.eval()
    return model

"""Hugging Face models of published sizes, with random weights, made on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from benchmarks.gpu.scale import Scale
from benchmarks.timing import release

MODELS = ("Llama-3.1-8B", "Mistral-7B")
LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_made: dict[tuple[str, bool, int], PreTrainedModel] = {}
MISTRAL_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}


def config_of(name: str, scale: Scale, layers: int) -> PreTrainedConfig:
    """Return the published configuration (meta-llama/Llama-3.1-8B, mistralai/Mistral-7B-v0.3).

    Mistral has room for the longest prompt; its rotary positions have no end anyway.
    """
    sizes: dict[str, Any] = {
        "vocab_size": scale.vocabulary[name],
        "hidden_size": scale.model_dim,
        "intermediate_size": scale.mlp_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": scale.heads,
        "num_key_value_heads": scale.kv_heads,
        "head_dim": scale.dim,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name == "Mistral-7B":
        return MistralConfig(**sizes, rope_parameters=MISTRAL_ROPE, sliding_window=None)
    return LlamaConfig(**sizes, rope_parameters=LLAMA_ROPE)


def random_model(name: str, scale: Scale, layers: int, device: torch.device) -> PreTrainedModel:
    """Return a model with so many layers. It replaces the model that was made before."""
    wanted = (name, scale.toy, layers)
    if wanted not in _made:
        _made.clear()
        release()
        torch.manual_seed(0)
        with torch.device(device):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config_of(name, scale, layers), dtype=scale.dtype, attn_implementation="sdpa"
            )
        _made[wanted] = model.eval().requires_grad_(False)
    return _made[wanted]


def prompt(model: PreTrainedModel, length: int, batch: int = 1) -> Tensor:
    """Return random tokens."""
    draw = torch.Generator(model.device).manual_seed(length)
    size = model.config.vocab_size
    return torch.randint(3, size, (batch, length), generator=draw, device=model.device)

"""What a PolicyCache adds to one layer's share of a decode step, part by part."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache

import kvpolicy
from kvpolicy.exactness.usages import tokens
from kvpolicy.testing.models import tiny_model

EVERY_TOKEN = ("h2o", "tova", "streamingllm", "lacache")
PLAIN = {"scaling": None, "softcap": None, "sink_logits": None}
RECIPES = ("snapkv", "restkv", "adakv", *EVERY_TOKEN)


@torch.inference_mode()
def seconds_of_parts(recipe: str, *, held: int, steps: int) -> dict[str, float]:
    """Return the median seconds of each part; a model this small leaves little but Python."""
    model = tiny_model("llama", num_hidden_layers=4, max_position_embeddings=4 * held + steps)
    cache = kvpolicy.recipe(recipe, budget=held).cache(model)
    model(input_ids=tokens(0, 2 * held), past_key_values=cache)
    layer, module = cache.policy_layers[0], model.model.layers[0].self_attn
    rounds = [_round(layer, module) for _ in range(steps)]
    return {part: median(each[part] for each in rounds) for part in rounds[0]}


def _round(layer: Any, module: Any) -> dict[str, float]:
    config = module.config
    query = torch.randn(1, config.num_attention_heads, 1, config.head_dim)
    keys, values = torch.randn(2, 1, config.num_key_value_heads, 1, config.head_dim)
    started = perf_counter()
    layer.update(keys, values)
    updated = perf_counter()
    layer.mask_for(None, query, "sdpa")
    masked = perf_counter()
    if layer.is_uneven:
        layer.attend(query, **PLAIN)
    attended = perf_counter()
    layer.observe(module, query, **PLAIN)
    observed = perf_counter()
    parts = {"update": updated - started, "mask": masked - updated}
    if layer.is_uneven:
        parts["attend"] = attended - masked
    return parts | {"observe": observed - attended}


@torch.inference_mode()
def seconds_of_a_plain_update(*, held: int, steps: int) -> float:
    """Return the median seconds that transformers' DynamicCache takes for the same."""
    config = tiny_model("llama").config
    layer = DynamicCache(config=config).layers[0]
    shape = (2, 1, config.num_key_value_heads)
    layer.update(*torch.randn(*shape, held, config.head_dim))
    seconds = []
    for _ in range(steps):
        keys, values = torch.randn(*shape, 1, config.head_dim)
        started = perf_counter()
        layer.update(keys, values)
        seconds.append(perf_counter() - started)
    return median(seconds)

"""How far two computations of the same logits may differ."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, DynamicLayer
from transformers.cache_utils import LinearAttentionLayer

LIMIT = 1e-4
"""For float32 logits. Both sides add the same numbers in different orders; nothing else differs."""
ULPS = 4
"""In half precision: so many units in the last place of the largest logit, since each layer rounds.

transformers' own eager and sdpa attention differ by more on the tiny models. A position that is off
by one changes logits by far more than this.
"""
ROUNDINGS = 4
"""For a state beside attention: so often the change of logits if each weight is rounded once more.

Such a state multiplies what rounding changes. docs/results/exactness.jsonl has the limit of each
model. A single token that is hidden changes logits by far more (tests/exactness/test_limits.py).
"""
_PROMPTS = 4


@torch.no_grad()
def limit_of(model: Any) -> float:
    """Return how far the logits of a model may differ."""
    if model.dtype != torch.float32:
        return ULPS * torch.finfo(model.dtype).eps * float(_logits(model, 0).abs().max())
    if not _has_state_beside_attention(model):
        return LIMIT
    rounded = deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for weight in rounded.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.mul_(1 + torch.finfo(weight.dtype).eps * noise)
    changes = [
        (_logits(rounded, seed) - _logits(model, seed)).abs().max() for seed in range(_PROMPTS)
    ]
    return max(LIMIT, ROUNDINGS * float(torch.stack(changes).max()))


def _logits(model: Any, seed: int) -> Tensor:
    logits: Tensor = model((torch.arange(5, 65) + 7 * seed)[None], use_cache=False).logits
    return logits


def _has_state_beside_attention(model: Any) -> bool:
    layers = DynamicCache(config=model.config).layers
    return any(
        isinstance(each, LinearAttentionLayer) and isinstance(each, DynamicLayer) for each in layers
    )

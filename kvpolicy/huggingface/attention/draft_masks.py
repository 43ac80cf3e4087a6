"""Masks of forwards that read drafts behind the end of a prompt: plainly causal, no padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import UnsupportedModelError


def causal_behind(mask: Any, slots: Slots, query: Tensor, backend: str) -> Any:
    """Return a mask by which new tokens see the slots up to their own, where none is padding.

    None where attention without a mask is that. Raises UnsupportedModelError for block masks.
    """
    count, held = query.shape[2], slots.held
    if "flash" in backend or (mask is None and count in (1, held)):
        return None
    if "flex" in backend:
        raise UnsupportedModelError(
            "drafts attend to what an eviction has left, which flex_attention's block masks cannot "
            "say here. Use sdpa or eager, or generate without drafts."
        )
    own = torch.arange(held - count, held, device=query.device)[:, None]
    visible = (torch.arange(held, device=query.device) <= own)[None, None]
    is_added = backend == "eager" if mask is None else mask.dtype != torch.bool
    if not is_added:
        return visible
    floor = torch.finfo(query.dtype).min
    return torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, floor)

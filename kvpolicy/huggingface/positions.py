"""The true positions that a layer of a cache holds, also a layer of transformers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.huggingface.layer import PolicyLayer


def positions_of(layer: Any) -> Int[Tensor, "B N K"]:
    """Return the true positions that a layer holds: ascending, -1 beyond a head's length."""
    return _leftmost(_positions(layer))


def _positions(layer: Any) -> Int[Tensor, "B N K"]:
    if isinstance(layer, PolicyLayer):
        return layer.positions
    keys: Tensor | None = getattr(layer, "keys", None)
    if keys is None:
        return torch.empty((0, 0, 0), dtype=torch.long, device="cpu")
    seen = layer.get_seq_length()
    return torch.arange(seen - keys.shape[-2], seen, device=keys.device).expand(*keys.shape[:2], -1)


def _leftmost(positions: Int[Tensor, "B N K"]) -> Int[Tensor, "B N K"]:
    """Move padding behind the positions; storage has it before them."""
    padding = positions < 0
    last = torch.iinfo(torch.long).max
    ordered = positions.masked_fill(padding, last).sort(-1).values
    return ordered.masked_fill(ordered == last, -1)

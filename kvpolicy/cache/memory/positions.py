"""The positions of slots: those that are known, and those of the last tokens behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.cache.memory.sent import sent


def joined(known: Int[Tensor, "B n _"], held: int, seen: Sequence[int]) -> Int[Tensor, "B n held"]:
    """Return the positions of `held` slots: those known first, then the last tokens of each row.

    `seen` are the tokens that each row has seen.

    >>> joined(torch.tensor([[[0, 4]]]), 4, [9])
    tensor([[[0, 4, 7, 8]]])
    """
    added = held - known.shape[-1]
    if not added:
        return known.long()
    new = _last(added, seen, known.device).expand(*known.shape[:2], -1)
    return torch.cat([known, new], -1) if known.shape[-1] else new


def _last(count: int, seen: Sequence[int], device: torch.device) -> Int[Tensor, "#B 1 count"]:
    """Return the positions of each row's last `count` tokens."""
    if len(set(seen)) == 1:
        return torch.arange(seen[0] - count, seen[0], device=device)[None, None]
    return torch.arange(-count, 0, device=device) + sent(seen, device)[:, None, None]

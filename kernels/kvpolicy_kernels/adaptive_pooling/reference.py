"""Drift and adaptive pooling in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def mean_drift(means: Float64[Tensor, "B H W"], count: int) -> Float64[Tensor, "B H"]:
    """Add whole numbers, whose sums are exact in any order."""
    sums, window = (means * count).round(), means.shape[-1]
    if window % 2 == 0:
        front, rear = sums.unflatten(-1, (2, -1)).mean(-1).unbind(-1)
    else:
        front, rear = (half.mean(-1) for half in sums.tensor_split([window // 2], -1))
    drift: Float64[Tensor, "B H"] = (front - rear) / count
    return drift


def adaptive_pooling(
    drift: Float64[Tensor, "B H"], *, width: int, scale: float
) -> tuple[Int64[Tensor, "B H"], Int64[Tensor, "B H"]]:
    """Divide in float64."""
    steps = drift / scale
    widths = torch.rsub(steps.long().abs(), 1, alpha=-2)  # 1 + 2 |steps|, in one operation
    shifts = steps.floor().long() + (drift <= 0)
    return widths.clamp(min=width), shifts

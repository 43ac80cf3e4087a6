"""The best positions of each head, the same on every device."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["select"]


def select(
    scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"], *, count: int | None = None
) -> Int64[Tensor, "B N K"]:
    """Return the positions of the `budgets` highest scores of each head, ascending.

    Fillers of S follow where a head has fewer than K positions. K is `count`, or else the largest
    budget: to read it waits for the GPU, unless the budgets are on the CPU. A budget above K or S
    is cut to it. Of equal scores, those of lower positions win. +inf always wins; -inf and NaN win
    only if nothing else is left.

    Raises ValueError if the shapes do not fit, or for a negative `count`.

    >>> import torch
    >>> scores = torch.tensor([[[3.0, 1.0, 2.0, 2.0], [0.0, 9.0, 0.0, 0.0]]])
    >>> select(scores, torch.tensor([[2, 1]]))
    tensor([[[0, 2],
             [1, 4]]])
    """
    require(
        budgets.shape == scores.shape[:2],
        f"budgets {tuple(budgets.shape)} do not fit scores {tuple(scores.shape)}",
    )
    require(count is None or count >= 0, f"count must be at least 0, not {count}")
    if budgets.device != scores.device and budgets.device.type == "cpu":
        most = int(budgets.max()) if budgets.numel() else 0
        count = most if count is None else count
        budgets = _beside(scores, budgets, most)
    return implementation(select, scores, budgets)(scores, budgets, count=count)


def _beside(
    scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"], most: int
) -> Int64[Tensor, "B N"]:
    """Return budgets of the CPU where the scores are, without a wait for the GPU."""
    if bool((budgets == most).all()):
        return torch.full_like(budgets, most, dtype=torch.int64, device=scores.device)
    return budgets.to(scores.device, torch.int64, non_blocking=True)

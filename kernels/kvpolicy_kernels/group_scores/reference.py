"""Groups and protected positions in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.common.pytorch.sums import sums_dtype


def group_scores(
    scores: Float[Tensor, "B H S"], kv_heads: int, how: Literal["mean", "max", "sum"]
) -> Float[Tensor, "B N S"]:
    """Reduce over the query heads of each group."""
    batch, heads, length = scores.shape
    grouped = scores.view(batch, kv_heads, heads // max(1, kv_heads), length)
    if how == "max":
        return grouped.amax(2)
    wide = sums_dtype(scores.device)
    reduced = grouped.mean(2, dtype=wide) if how == "mean" else grouped.sum(2, dtype=wide)
    return reduced.to(scores.dtype)


def protect_scores(
    scores: Float[Tensor, "B N S"],
    positions: Int[Tensor, "B N S"],
    *,
    before: int = 0,
    since: int | None = None,
) -> Float[Tensor, "B N S"]:
    """Fill what either bound protects."""
    first = positions < before if before > 0 else None
    last = None if since is None else positions >= since
    if first is None or last is None:
        protected = first if last is None else last
        return scores.clone() if protected is None else scores.masked_fill(protected, torch.inf)
    return scores.masked_fill(first | last, torch.inf)

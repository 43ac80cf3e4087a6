"""Group: one score for each key/value head, from those of the query heads that read it."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels import sums_dtype

Group = Literal["mean", "max", "sum"]
"""How the scores of a group of query heads are reduced."""


def reduce_groups(
    scores: Float[Tensor, "B H S"], heads: int, group: Group
) -> Float[Tensor, "B N S"]:
    """Reduce the scores of the query heads that share one of `heads` key/value heads.

    >>> import torch
    >>> reduce_groups(torch.tensor([[[1.0], [3.0]]]), 1, "mean")
    tensor([[[2.]]])
    """
    batch, _, length = scores.shape
    grouped = scores.view(batch, heads, -1, length)
    if group == "max":
        return grouped.amax(2)
    # A float32 sum depends on its order, and would rank heads that agree by rounding.
    wide = sums_dtype(scores.device)
    reduced = grouped.mean(2, dtype=wide) if group == "mean" else grouped.sum(2, dtype=wide)
    return reduced.to(scores.dtype)

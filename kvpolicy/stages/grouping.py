"""Group: reduce the scores of the query heads of a group to one for their key/value head."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels import sums_dtype

Group = Literal["mean", "max", "sum"]
"""How the scores of a group of query heads are reduced to one."""


def reduce_groups(
    scores: Float[Tensor, "B H S"], heads: int, group: Group
) -> Float[Tensor, "B N S"]:
    """Reduce the scores of H query heads to `heads` key/value heads.

    >>> import torch
    >>> reduce_groups(torch.tensor([[[1.0], [3.0]]]), 1, "mean")
    tensor([[[2.]]])
    """
    batch, _, length = scores.shape
    grouped = scores.view(batch, heads, -1, length)
    if group == "max":
        return grouped.amax(2)
    # A float32 sum depends on its order: equal scores would then be ranked by rounding.
    wide = sums_dtype(scores.device)
    reduced = grouped.mean(2, dtype=wide) if group == "mean" else grouped.sum(2, dtype=wide)
    return reduced.to(scores.dtype)

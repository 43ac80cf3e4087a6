"""The scores of a group of query heads as one, and positions whose scores are above all others."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_groups

__all__ = ["group_scores", "protect_scores"]


def group_scores(
    scores: Float[Tensor, "B H S"], kv_heads: int, how: Literal["mean", "max", "sum"]
) -> Float[Tensor, "B N S"]:
    """Reduce the scores of H query heads to `kv_heads` key/value heads.

    A mean or sum is added in float64 where the device has it: a float32 sum depends on its order,
    and equal scores would then be ranked by rounding. The result has the dtype of the scores.

    Raises ValueError if the heads do not divide evenly, or for an unknown `how`.

    >>> import torch
    >>> group_scores(torch.tensor([[[1.0], [3.0]]]), 1, "mean")
    tensor([[[2.]]])
    """
    require_groups(scores.shape[1], kv_heads)
    require(how in ("mean", "max", "sum"), f"how must be 'mean', 'max' or 'sum', not {how!r}")
    return implementation(group_scores, scores)(scores, kv_heads, how)


def protect_scores(
    scores: Float[Tensor, "B N S"],
    positions: Int[Tensor, "B N S"],
    *,
    before: int = 0,
    since: int | None = None,
) -> Float[Tensor, "B N S"]:
    """Return scores that are +inf at positions below `before`, and at those of `since` and above.

    A `before` of 0, or a `since` of None, protects none.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> protect_scores(torch.zeros(1, 1, 3), torch.arange(3).view(1, 1, 3), before=1, since=2)
    tensor([[[inf, 0., inf]]])
    """
    if positions.shape != scores.shape:
        raise ValueError(
            f"positions {tuple(positions.shape)} do not fit scores {tuple(scores.shape)}"
        )
    return implementation(protect_scores, scores, positions)(
        scores, positions, before=before, since=since
    )

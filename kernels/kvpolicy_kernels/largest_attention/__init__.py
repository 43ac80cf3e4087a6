"""The most that any query of a window attends to each position before it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_sinks, require_window
from kvpolicy_kernels.largest_attention.reference import LargestAttention

__all__ = ["LargestAttention", "largest_attention"]


def largest_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    width: int,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> LargestAttention:
    """Return what a window's queries attend to the P = S - W positions before it, by group.

    `mean` is the mean attention of all queries of all query heads of a group. For `largest` each
    query's attention is averaged over `width` neighbours among the P positions, where zeros stand
    beyond the ends, and multiplied so that its sum over them is what it was. Then the maximum over
    the queries and query heads of a group is taken. [B H W S] is never stored. Options are those of
    `window_attention`.

    Raises ValueError if the shapes do not fit, if no position is before the window, and for a
    `width` that is even or below 1.

    >>> import torch
    >>> queries = torch.zeros(1, 1, 1, 1)
    >>> found = largest_attention(queries, torch.zeros(1, 1, 4, 1), 1, scaling=1.0)
    >>> found.largest, found.mean
    (tensor([[[0.2500, 0.2500, 0.2500]]]), tensor([[[0.2500, 0.2500, 0.2500]]]))
    """
    require_window(queries, keys)
    require_sinks(sinks, queries)
    window, positions = queries.shape[2], keys.shape[2]
    require(
        window < positions,
        f"a window of {window} queries leaves none of {positions} positions before it",
    )
    require(width >= 1 and width % 2 == 1, f"a width must be odd and at least 1, not {width}")
    given = (queries, keys) if sinks is None else (queries, keys, sinks)
    return implementation(largest_attention, *given)(
        queries, keys, width, scaling=scaling, softcap=softcap, sinks=sinks
    )

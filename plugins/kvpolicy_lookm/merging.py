"""The weight of an evicted position in the kept position that it is merged into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Bool, Float32
from torch import Tensor

from kvpolicy.stages.compaction import Evicted

Merge = Literal["pivot", "averaged", "weighted", "normalized"]


class Shares(NamedTuple):
    """The weight of each evicted row, and how often a kept row is repeated and counted for it.

    See `kvpolicy_kernels.merged_rows`. A number is that of all rows.
    """

    own: Float32[Tensor, "B N E"] | float
    repeated: float
    counted: Float32[Tensor, "B N E"] | float


def shares(
    similarity: Float32[Tensor, "B N E"],
    evicted: Evicted,
    merge: Merge,
    of_all_heads: Callable[[Tensor], Tensor] = lambda of_shown: of_shown,
) -> Shares:
    """Return the shares of evicted positions with these cosines."""
    if merge == "pivot":
        return Shares(0.5, 1.0, 2.0)
    if merge == "averaged":
        return Shares(1.0, 0.0, 1.0)
    if merge == "weighted":
        is_evicted = evicted.is_row
        close = is_evicted * _close(of_all_heads(similarity), of_all_heads(is_evicted)).float()
        return Shares(similarity * close, 0.0, close)
    return Shares(evicted.is_row * ((1 + similarity) / 2).clamp(min=1e-6), 0.0, 1.0)


def _close(
    similarity: Float32[Tensor, "B N E"], is_evicted: Bool[Tensor, "B N E"]
) -> Bool[Tensor, "B 1 E"]:
    """Return which evicted positions have at least the mean cosine, averaged over heads.

    The j-th evicted positions of all heads are averaged, even if heads evicted different ones.
    """
    heads = is_evicted.sum(1, keepdim=True)
    over_heads = (similarity * is_evicted).sum(1, keepdim=True) / heads.clamp(min=1)
    some = heads > 0
    average = (over_heads * some).sum(-1, keepdim=True) / some.sum(-1, keepdim=True).clamp(min=1)
    return over_heads >= average

"""The weight of an evicted position in the kept position that it is merged into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

Merge = Literal["pivot", "averaged", "weighted", "normalized"]


class Shares(NamedTuple):
    """Three weights of each evicted row: its own, that of the kept row repeated, and its count.

    x becomes (x (1 + sum repeated) + sum own d) / (1 + sum counted).
    """

    own: Float32[Tensor, "B N E"]
    repeated: Float32[Tensor, "B N E"]
    counted: Float32[Tensor, "B N E"]


def shares(
    similarity: Float32[Tensor, "B N E"],
    is_evicted: Bool[Tensor, "B N E"],
    merge: Merge,
    of_all_heads: Callable[[Tensor], Tensor] = lambda of_shown: of_shown,
) -> Shares:
    """Return the shares of evicted positions with these cosines.

    >>> both = torch.ones(1, 1, 2).bool()
    >>> shares(torch.tensor([[[0.0, 1.0]]]), both, "normalized").own
    tensor([[[0.5000, 1.0000]]])
    """
    one = is_evicted.float()
    none = torch.zeros_like(one)
    if merge == "pivot":
        return Shares(one / 2, one / 2, one)
    if merge == "averaged":
        return Shares(one, none, one)
    if merge == "weighted":
        close = one * _close(of_all_heads(similarity), of_all_heads(is_evicted))
        return Shares(similarity * close, none, close)
    weights = one * ((1 + similarity) / 2).clamp(min=1e-6)
    return Shares(weights, none, weights)


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


def weighted_mean(
    kept: Float[Tensor, "B N K D"],
    evicted: Float[Tensor, "B N E D"],
    slots: Int64[Tensor, "B N E"],
    share: Shares,
) -> Float[Tensor, "B N K D"]:
    """Return kept keys or values with the evicted ones merged into them, computed in float32.

    A row that nothing is merged into does not change, bit for bit.
    """
    nothing = kept.new_zeros(kept.shape[:3], dtype=torch.float32)
    repeated = nothing.scatter_add(2, slots, share.repeated)
    counted = nothing.scatter_add(2, slots, share.counted)
    parts = evicted.float() * share.own[..., None]
    sums = kept.float() * (1 + repeated)[..., None]
    sums.scatter_add_(2, slots[..., None].expand_as(parts), parts)
    return (sums / (1 + counted)[..., None]).to(kept.dtype)

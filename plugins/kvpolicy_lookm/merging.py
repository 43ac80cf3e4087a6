"""The weight of an evicted position in the kept position that it is merged into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from kvpolicy_kernels import sums_dtype

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
        half = one / 2
        return Shares(half, half, one)
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
    evicted: Iterable[tuple[slice, Float[Tensor, "B N e D"]]],
    slots: Int64[Tensor, "B N E"],
    share: Shares,
) -> Float[Tensor, "B N K D"]:
    """Return kept keys or values with the evicted ones merged into them, which come in blocks.

    They are summed in float64: a GPU adds in varying order, and this does not change such sums. A
    row that nothing is merged into does not change, bit for bit.
    """
    dtype = sums_dtype(kept.device)
    nothing = kept.new_zeros(kept.shape[:3], dtype=dtype)
    repeated = nothing.scatter_add(2, slots, share.repeated.to(dtype))
    sums = kept.to(dtype) * (1 + repeated)[..., None]
    for block, rows in evicted:
        parts = rows.to(dtype).mul_(share.own[:, :, block, None])
        sums.scatter_add_(2, slots[:, :, block, None].expand_as(parts), parts)
    counted = nothing.scatter_add_(2, slots, share.counted.to(dtype))
    return sums.div_((1 + counted)[..., None]).to(kept.dtype)

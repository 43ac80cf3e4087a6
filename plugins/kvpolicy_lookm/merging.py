"""The weight of an evicted position in the kept position that it is merged into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from kvpolicy.stages.compaction import Evicted
from kvpolicy_kernels import summed_rows

Merge = Literal["pivot", "averaged", "weighted", "normalized"]


class Shares(NamedTuple):
    """The weight of each evicted row, and what the weights of a slot add up to.

    x becomes (x (1 + repeated sum own) + sum own d) / (1 + counted sum own). With `close`, which
    says which rows count, it becomes (x + sum own d) / (1 + sum close).
    """

    own: Float32[Tensor, "B N E"]
    repeated: float
    counted: float
    close: Float32[Tensor, "B N E"] | None = None


def shares(
    similarity: Float32[Tensor, "B N E"],
    is_evicted: Bool[Tensor, "B N E"],
    merge: Merge,
    of_all_heads: Callable[[Tensor], Tensor] = lambda of_shown: of_shown,
) -> Shares:
    """Return the shares of evicted positions with these cosines.

    >>> import torch
    >>> both = torch.ones(1, 1, 2).bool()
    >>> shares(torch.tensor([[[0.0, 1.0]]]), both, "normalized").own
    tensor([[[0.5000, 1.0000]]])
    """
    if merge == "pivot":
        return Shares(is_evicted.float() * 0.5, 1.0, 2.0)
    if merge == "averaged":
        return Shares(is_evicted.float(), 0.0, 1.0)
    if merge == "weighted":
        close = is_evicted * _close(of_all_heads(similarity), of_all_heads(is_evicted)).float()
        return Shares(similarity * close, 0.0, 0.0, close)
    return Shares(is_evicted * ((1 + similarity) / 2).clamp(min=1e-6), 0.0, 1.0)


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


def weighted_means(
    kept: tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]],
    evicted: Evicted,
    slots: Int[Tensor, "B N E"],
    share: Shares,
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
    """Return the kept keys and values with the evicted ones merged into them.

    Sums are in float64: a GPU adds in varying order, and this does not change such sums. A row that
    nothing is merged into does not change, bit for bit.
    """
    count = kept[0].shape[2]
    # A row of ones for each position, which takes no memory: the sum of its shares.
    ones = share.own.new_ones(1).expand(*evicted.all_keys.shape[:3], 1)
    rows = evicted.rows
    sums, own = summed_rows((evicted.all_keys, ones), rows, slots, share.own, count=count)
    if share.close is None:
        counted = 1 + share.counted * own
    else:
        counted = 1 + summed_rows((ones,), rows, slots, share.close, count=count)[0]
    repeated = 1 + share.repeated * own
    keys = sums.addcmul_(kept[0], repeated).div_(counted).to(kept[0].dtype)
    # Sums of keys need not be held while values are added.
    del sums
    (sums,) = summed_rows((evicted.all_values,), rows, slots, share.own, count=count)
    return keys, sums.addcmul_(kept[1], repeated).div_(counted).to(kept[1].dtype)

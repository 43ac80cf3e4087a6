"""The importance of each channel of a head's keys for its attention logits."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from kvpolicy.stages.grouping import reduce_groups


def channel_importance(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N K D"],
    counted: Bool[Tensor, "B N K"],
) -> Float32[Tensor, "B N D"]:
    """Return the mean of q^2 over a group's queries, times the sum of k^2 over the keys counted.

    A sum gives the channels of a head the same order as a mean. For one query head the root of the
    result is, up to a factor, the Frobenius norm of the channel's part of all logits.

    >>> keys = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]]]])
    >>> channel_importance(torch.ones(1, 2, 1, 2), keys, torch.ones(1, 1, 2).bool())
    tensor([[[10.,  4.]]])
    """
    of_queries = reduce_groups(queries.float().square().mean(2), keys.shape[1], "mean")
    of_keys = (keys.float().square() * counted[..., None]).sum(2)
    return of_queries * of_keys


def least_important(importance: Float32[Tensor, "B N D"], count: int) -> Bool[Tensor, "B N D"]:
    """Mark the `count` channels of each head with the lowest importance.

    >>> least_important(torch.tensor([[[3.0, 1.0, 2.0]]]), 2)
    tensor([[[False,  True,  True]]])
    """
    lowest = importance.topk(count, dim=-1, largest=False).indices
    return torch.zeros_like(importance, dtype=torch.bool).scatter(-1, lowest, value=True)

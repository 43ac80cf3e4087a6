"""The tokens with the largest scores of a layer, and the share of each."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.token_shares.reference import TokenShares

__all__ = ["TokenShares", "token_shares"]


def token_shares(scores: Float[Tensor, "B H S"], count: int, *, first: int = 0) -> TokenShares:
    """Return the `count` positions with the largest mean score of all heads, and their shares.

    Positions before `first` are not chosen. Places ascend. A share is the square of a position's
    mean, as a part of the sum of the chosen ones; all are 0 if no mean is above 0. Of equal means,
    those of lower positions are chosen.

    Raises ValueError for a `first` that is not in 0 ... S, and for a `count` that is not in
    1 ... S - `first`.

    >>> import torch
    >>> token_shares(torch.tensor([[[1.0, 0.0, 3.0], [1.0, 0.0, 1.0]]]), 2)
    TokenShares(places=tensor([[0, 2]]), shares=tensor([[0.2000, 0.8000]]))
    """
    length = scores.shape[-1]
    require(0 <= first <= length, f"first must be in 0 ... {length}, the positions, not {first}")
    most = length - first
    require(1 <= count <= most, f"count must be in 1 ... {most}, the positions, not {count}")
    return implementation(token_shares, scores)(scores, count, first=first)

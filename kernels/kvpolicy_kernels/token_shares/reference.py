"""Tokens and their shares in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.select.reference import select


class TokenShares(NamedTuple):
    """M tokens of each sequence, by their places, and the share of each."""

    places: Int[Tensor, "B M"]
    shares: Float[Tensor, "B M"]


@torch.no_grad()
def token_shares(scores: Float[Tensor, "B H S"], count: int, *, first: int = 0) -> TokenShares:
    """Select by the squares of the means, which are divided by the largest mean before."""
    means = scores[..., first:].mean(1)
    squares = (means / _not_zero(means.amax(-1, keepdim=True))).square()
    budgets = torch.full((len(squares), 1), count, dtype=torch.long, device="cpu")
    places = select(squares[:, None], budgets, count=count)[:, 0]
    chosen = squares.gather(-1, places)
    return TokenShares(places + first, chosen / _not_zero(chosen.sum(-1, keepdim=True)))


def _not_zero(numbers: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
    return numbers.clamp_min(torch.finfo(numbers.dtype).tiny)

"""The output projection as each head, or group of heads, sees it, factorised once per weight."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kvpolicy_kernels import head_factors

_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def output_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float[Tensor, "H R Dv"]:
    """Return the R factor of every head's columns of `weight`, remembered while `weight` lives.

    With the number of key/value heads as `heads`, of the columns of each group of query heads.

    A weight that has changed since is factorised anew. Its version counter would not tell: merging
    adapters writes through `.data`.
    """
    mark = (weight.dtype, weight.device, _fingerprint(weight.detach()))
    remembered = _factors.setdefault(weight, {})
    known = remembered.get(heads)
    if known is None or known[0] != mark:
        known = remembered[heads] = (mark, head_factors(weight.detach(), heads))
    factors: Tensor = known[1]
    return factors


def _fingerprint(weight: Float[Tensor, "M columns"]) -> float:
    """Return a sum in which every entry counts with a factor of its own."""
    rows, columns = (
        torch.linspace(1, 2, size, device=weight.device, dtype=torch.float32)
        for size in weight.shape
    )
    # A block of rows at a time: a half-precision weight is not copied whole.
    products = [block.float() @ columns for block in weight.split(512)]
    return float(rows @ torch.cat(products))

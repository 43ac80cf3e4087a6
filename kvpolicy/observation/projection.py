"""QR factors of the output projection, for each head or group of heads, computed once a weight."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kvpolicy_kernels import head_factors

_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def output_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float[Tensor, "H R Dv"]:
    """Return the R factor of a QR of each head's columns of `weight`.

    `heads` divides the columns: the number of query heads gives a factor for each of them, the
    number of key/value heads gives one for each group. Factors are kept as long as `weight` exists.

    A weight whose numbers have changed is factorised again. A fingerprint finds the change: merging
    adapters writes through `.data`, which leaves the version counter as it was.
    """
    mark = (weight.dtype, weight.device, _fingerprint(weight.detach()))
    remembered = _factors.setdefault(weight, {})
    known = remembered.get(heads)
    if known is None or known[0] != mark:
        known = remembered[heads] = (mark, head_factors(weight.detach(), heads))
    factors: Tensor = known[1]
    return factors


def _fingerprint(weight: Float[Tensor, "M columns"]) -> float:
    """Return a sum in which every entry has a factor of its own."""
    rows, columns = (
        torch.linspace(1, 2, size, device=weight.device, dtype=torch.float32)
        for size in weight.shape
    )
    # Blocks of rows, so that a half-precision weight is never copied whole to float32.
    products = [block.float() @ columns for block in weight.split(512)]
    return float(rows @ torch.cat(products))

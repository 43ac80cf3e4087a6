"""Triangular factors of the output projection, one for each head."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.checks import require
from kvpolicy_kernels.head_factors import reference

__all__ = ["head_factors"]


def head_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float32[Tensor, "H R D"]:
    """Return a factor R_h of each head's projection W_h: ||R_h x|| = ||W_h x|| for all x.

    `weight` is that of the output projection, [M, H D]; W_h are the columns of head h. R_h has
    R = min(M, D) rows, so a norm in the model's M dimensions costs no more than D of them. The
    factors depend on the model only: compute them once.

    Raises ValueError if the columns do not divide among the heads evenly.

    >>> import torch
    >>> head_factors(torch.randn(64, 4 * 8), heads=4).shape
    torch.Size([4, 8, 8])
    """
    require(
        heads >= 1 and weight.shape[1] % heads == 0,
        f"{weight.shape[1]} columns do not divide among {heads} heads evenly",
    )
    return reference.head_factors(weight, heads)

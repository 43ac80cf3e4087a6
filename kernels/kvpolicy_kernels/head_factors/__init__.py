"""Triangular factors of the output projection, one per head."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.checks import require
from kvpolicy_kernels.head_factors import reference

__all__ = ["head_factors"]


def head_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float32[Tensor, "H R D"]:
    """Factor the output projection: |R_h x| = |W_h x| for every head h and every x.

    `weight` is that of the projection, [M, H D]; W_h are its columns of head h. R_h has
    R = min(M, D) rows, so norms in the model's M dimensions cost D of them. Compute once per model.

    >>> import torch
    >>> head_factors(torch.randn(64, 4 * 8), heads=4).shape
    torch.Size([4, 8, 8])
    """
    require(
        heads >= 1 and weight.shape[1] % heads == 0,
        f"{weight.shape[1]} columns do not divide among {heads} heads",
    )
    return reference.head_factors(weight, heads)

"""How large values are behind the output projection."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.checks import require, require_groups
from kvpolicy_kernels.projected_norms import reference

__all__ = ["projected_norms"]


def projected_norms(
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, "H R Dv"],
    *,
    order: Literal[1, 2] = 1,
) -> Float32[Tensor, "B N S"]:
    """Norm of W_h v_i, averaged over the query heads h that read a value; never [H, S, R].

    `weights` are each head's columns of the output projection; of order 2, its factors will do.

    >>> import torch
    >>> values = torch.tensor([[[[3.0, -4.0]]]])
    >>> [projected_norms(values, torch.eye(2)[None], order=order).item() for order in (1, 2)]
    [7.0, 5.0]
    """
    require_groups(weights.shape[0], values.shape[1])
    require(
        weights.shape[-1] == values.shape[-1],
        f"weights {tuple(weights.shape)} do not fit values {tuple(values.shape)}",
    )
    require(order in (1, 2), f"order must be 1 or 2: {order!r}")
    return reference.projected_norms(values, weights, order=order)

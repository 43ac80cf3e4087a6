"""The size of values behind the output projection."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_groups

__all__ = ["projected_norms"]


def projected_norms(
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, "H R Dv"],
    *,
    order: Literal[1, 2] = 1,
) -> Float32[Tensor, "B N S"]:
    """Return the norm of W_h v_i, averaged over the query heads h of each group.

    `weights` are each head's columns W_h of the output projection. `order` is that of the norm: 1
    or 2. For order 2 `weights` can be `head_factors`, which are smaller. The projected values
    [H, S, R] are never stored.

    Raises ValueError if the shapes do not fit, or for another order.

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
    require(order in (1, 2), f"order must be 1 or 2, not {order!r}")
    return implementation(projected_norms, values, weights)(values, weights, order=order)

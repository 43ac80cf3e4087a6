"""The error that losing a position causes in all query heads of a group together."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.checks import require_factors
from kvpolicy_kernels.joint_reconstruction_error import reference
from kvpolicy_kernels.leave_one_out_error import checked_sum

__all__ = ["joint_reconstruction_error"]


def joint_reconstruction_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "N R GD"] | None,
    *,
    summed: int | None = None,
    learned_sinks: bool = False,
) -> Float[Tensor, "B N S"]:
    """Return || sum_h a_hi / (1 - a_hi) W_h (o_h - v_i) ||, over the query heads h of each group.

    That is exactly how much the layer's output changes if one key/value head loses position i.
    o_h = sum_i a_hi v_i is over the first `summed` positions; None: all. A head's largest weight
    counts as a (mean of the others - v), which keeps its digits if it is near 1. `factors` are
    `head_factors(weight, heads=N)`, of the G D columns that the G heads of a group own together.
    None measures in value space, where heads do not mix. With `learned_sinks` rows sum to less
    than 1. The result has the dtype of `attention`.

    Raises ValueError if the shapes do not fit, and for a `summed` that is not in 0 ... S.

    >>> import torch
    >>> attention, values = torch.full((1, 2, 2), 0.5), torch.tensor([[[[0.0], [3.0]]]])
    >>> joint_reconstruction_error(attention, values, torch.tensor([[[1.0, 1.0]]]))
    tensor([[[3., 3.]]])
    """
    summed = checked_sum(attention, values, summed)
    if factors is not None:
        groups = attention.shape[1] // values.shape[1]
        require_factors(factors, values.shape[1], groups * values.shape[-1])
    return reference.joint_reconstruction_error(
        attention, values, factors, summed=summed, learned_sinks=learned_sinks
    )

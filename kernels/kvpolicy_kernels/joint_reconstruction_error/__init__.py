"""The error that losing a position causes in all query heads of a group together."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.checks import require_attention, require_factors
from kvpolicy_kernels.joint_reconstruction_error import reference

__all__ = ["joint_reconstruction_error"]


def joint_reconstruction_error(
    odds: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "N R GD"] | None,
) -> Float[Tensor, "B N S"]:
    """Return || sum_h odds_hi W_h (output_h - v_i) ||, over the query heads h of each group.

    That is exactly how much the layer's output changes if one key/value head loses position i.
    `odds` are those of the attention, `output` is each head's output. `factors` are
    `head_factors(weight, heads=N)`, of the G D columns that the G heads of a group own together.
    None measures in value space, where heads do not mix. The result has the dtype of `odds`.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> odds, values = torch.ones(1, 2, 2), torch.tensor([[[[0.0], [3.0]]]])
    >>> joint_reconstruction_error(
    ...     odds, values, torch.full((1, 2, 1), 1.5), torch.tensor([[[1.0, 1.0]]]))
    tensor([[[3., 3.]]])
    """
    require_attention(odds, values)
    if factors is not None:
        groups = odds.shape[1] // values.shape[1]
        require_factors(factors, values.shape[1], groups * values.shape[-1])
    return reference.joint_reconstruction_error(odds, values, output, factors)

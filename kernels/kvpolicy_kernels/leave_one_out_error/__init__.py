"""The error that losing a position causes in a head's output, exact for attention sinks too."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.checks import require, require_attention
from kvpolicy_kernels.largest_error import largest_error
from kvpolicy_kernels.reconstruction_error import reconstruction_error

__all__ = ["leave_one_out_error"]


def leave_one_out_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    summed: int | None = None,
    tau: float = 1.0,
    learned_sinks: bool = False,
) -> Float32[Tensor, "B H S"]:
    """Return a_i / (1 - a_i) ||R_h (o_h - v_i)|| ** tau for each query head and position.

    o_h = sum_i a_i v_i is over the first `summed` positions; None: all. The error of a head's
    largest weight is computed as a ||R_h (mean - v)||, where `mean` is the output of the others: if
    a sink has all attention but a trace, 1 - a and o - v have no digits left in float32. `factors`
    are those of `head_factors`; None measures in value space. With `learned_sinks` rows sum to less
    than 1.

    Raises ValueError if the shapes do not fit, for a `tau` of 0 or below, and for a `summed` that
    is not in 0 ... S.

    >>> values = torch.tensor([[[[0.0], [4.0]]]])
    >>> leave_one_out_error(torch.tensor([[[0.75, 0.25]]]), values, None)
    tensor([[[3., 1.]]])
    """
    summed = checked_sum(attention, values, summed)
    if summed == 0:
        nothing = attention.new_zeros(*attention.shape[:2], values.shape[-1], dtype=torch.float32)
        return reconstruction_error(attention, values, nothing, factors, tau=tau)
    place, output, error = largest_error(
        attention, values, factors, summed=summed, tau=tau, learned_sinks=learned_sinks
    )
    return reconstruction_error(attention, values, output, factors, tau=tau, known=(place, error))


def checked_sum(
    attention: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"], summed: int | None
) -> int:
    """Return over how many positions o sums; raise ValueError if shapes do not fit."""
    require_attention(attention, values)
    length = attention.shape[-1]
    summed = length if summed is None else summed
    require(0 <= summed <= length, f"summed must be in 0 ... {length}, the positions, not {summed}")
    return summed

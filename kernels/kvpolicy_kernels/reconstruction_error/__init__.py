"""How much a head's output would change without a position.

Without position i, renormalised attention changes the output o of a head by odds(a_i) (o - v_i)
exactly: the leave-one-out error that ReST-KV (An et al., ICLR 2026,
https://openreview.net/forum?id=PhEHuo7oMm) ranks positions by.
"""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_attention, require_factors

__all__ = ["reconstruction_error"]


def reconstruction_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    tau: float = 1.0,
) -> Float32[Tensor, "B H S"]:
    """odds(attention_i) |R_h (output_h - v_i)| ** tau; `factors` None measures in value space.

    >>> import torch
    >>> values = torch.tensor([[[[0.0, 0.0], [3.0, 4.0]]]])
    >>> attention = torch.tensor([[[0.5, 0.5]]])
    >>> reconstruction_error(attention, values, torch.zeros(1, 1, 2), None)
    tensor([[[0., 5.]]])
    """
    require_attention(attention, values)
    require_factors(factors, attention.shape[1], values.shape[-1])
    require(tau > 0, f"tau must be positive: {tau}")
    require(
        output.shape == (*attention.shape[:2], values.shape[-1]),
        f"output {tuple(output.shape)} does not fit attention {tuple(attention.shape)} "
        f"and values {tuple(values.shape)}",
    )
    tensors = (values, output) if factors is None else (values, output, factors)
    return implementation(reconstruction_error, *tensors)(
        attention, values, output, factors, tau=tau
    )

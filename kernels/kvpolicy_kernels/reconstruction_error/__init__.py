"""The error that losing a position causes in a head's output.

Without position i, and with the attention renormalised, the output o of a head changes by exactly
odds(a_i) (o - v_i). ReST-KV (An et al., ICLR 2026, https://openreview.net/forum?id=PhEHuo7oMm)
ranks positions by the size of this leave-one-out error.
"""

from __future__ import annotations

from jaxtyping import Float, Float32, Int64
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
    known: tuple[Int64[Tensor, "B H 1"], Float32[Tensor, "B H 1"]] | None = None,
) -> Float32[Tensor, "B H S"]:
    """Return odds(attention_i) ||R_h (output_h - v_i)|| ** tau for each query head and position.

    A weight near 1 loses its digits here: `leave_one_out_error` is exact for it too.

    `output` is each head's output o_h. `factors` are those of `head_factors`; None measures in
    value space, without R_h. `tau` is above 0. `known` has a position of each head and its error,
    which is known better.

    Raises ValueError if the shapes do not fit, or for a `tau` of 0 or below.

    >>> import torch
    >>> values = torch.tensor([[[[0.0, 0.0], [3.0, 4.0]]]])
    >>> attention = torch.tensor([[[0.5, 0.5]]])
    >>> reconstruction_error(attention, values, torch.zeros(1, 1, 2), None)
    tensor([[[0., 5.]]])
    """
    require_attention(attention, values)
    require_factors(factors, attention.shape[1], values.shape[-1])
    require(tau > 0, f"tau must be above 0, not {tau}")
    require(
        output.shape == (*attention.shape[:2], values.shape[-1]),
        f"output {tuple(output.shape)} does not fit attention {tuple(attention.shape)} "
        f"and values {tuple(values.shape)}",
    )
    require(
        known is None or known[0].shape == known[1].shape == (*attention.shape[:2], 1),
        f"known must have a position and an error of each head of {tuple(attention.shape[:2])}",
    )
    tensors = (values, output) if factors is None else (values, output, factors)
    return implementation(reconstruction_error, *tensors)(
        attention, values, output, factors, tau=tau, known=known
    )

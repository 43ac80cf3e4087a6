"""The output of each head, and the error of losing the position with its largest weight."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_attention, require_factors
from kvpolicy_kernels.largest_error.reference import LargestError

__all__ = ["LargestError", "largest_error"]


def largest_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    summed: int,
    tau: float = 1.0,
    learned_sinks: bool = False,
) -> LargestError:
    """Return o_h = sum_i a_i v_i, and the error a (1 - a)^(tau - 1) ||R_h (mean_h - v)||^tau.

    The sum is over the first `summed` positions. a is a head's largest weight among them, at
    `place`, and v is the value there. mean_h is the output of the others, divided by 1 - a, which
    is added up from the other weights of the row. With `learned_sinks` a row sums to
    less than 1, and its sink is one of the others. `factors` are those of `head_factors`; None
    measures in value space.

    Raises ValueError if the shapes do not fit, for a `tau` of 0 or below, and for a `summed` that
    is not in 1 ... S.

    >>> import torch
    >>> values = torch.tensor([[[[0.0], [4.0]]]])
    >>> largest_error(torch.tensor([[[0.75, 0.25]]]), values, None, summed=2)
    LargestError(place=tensor([[[0]]]), output=tensor([[[1.]]]), error=tensor([[[3.]]]))
    """
    require_attention(attention, values)
    require_factors(factors, attention.shape[1], values.shape[-1])
    require(tau > 0, f"tau must be above 0, not {tau}")
    length = attention.shape[-1]
    require(1 <= summed <= length, f"summed must be in 1 ... {length}, the positions, not {summed}")
    given = (attention, values) if factors is None else (attention, values, factors)
    return implementation(largest_error, *given)(
        attention, values, factors, summed=summed, tau=tau, learned_sinks=learned_sinks
    )

"""The output of each head, and the error of losing the position with its largest weight."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_factors, require_groups
from kvpolicy_kernels.largest_error.reference import LargestError

__all__ = ["LargestError", "largest_error"]


def largest_error(
    others: Float[Tensor, "B H D"],
    weight: Float[Tensor, "B H 1"],
    rest: Float[Tensor, "B H 1"],
    place: Int[Tensor, "B H 1"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    tau: float = 1.0,
) -> LargestError:
    """Return o_h = others_h + a v and the error a (1 - a)^(tau - 1) ||R_h (mean_h - v)||^tau.

    a is the largest `weight` of a head and v the value at its `place`. `others` are the outputs
    without that position, `rest` is 1 - a, added up from the other weights, and mean = others /
    rest. `factors` are those of `head_factors`; None measures in value space.

    Raises ValueError if the shapes do not fit, and for a `tau` of 0 or below.

    >>> import torch
    >>> one, values = torch.ones(1, 1, 1), torch.tensor([[[[0.0], [4.0]]]])
    >>> largest_error(one, 0.75 * one, 0.25 * one, (one * 0).long(), values, None)
    LargestError(output=tensor([[[1.]]]), error=tensor([[[3.]]]))
    """
    heads = others.shape[:2]
    require(
        weight.shape == rest.shape == place.shape == (*heads, 1)
        and values.shape[0] == heads[0]
        and values.shape[-1] == others.shape[-1],
        f"others {tuple(others.shape)}, weight {tuple(weight.shape)}, rest {tuple(rest.shape)}, "
        f"place {tuple(place.shape)} and values {tuple(values.shape)} do not fit",
    )
    require_groups(heads[1], values.shape[1])
    require_factors(factors, heads[1], values.shape[-1])
    require(tau > 0, f"tau must be above 0, not {tau}")
    tensors = (values, others, weight, rest, place)
    given = tensors if factors is None else (*tensors, factors)
    return implementation(largest_error, *given)(
        others, weight, rest, place, values, factors, tau=tau
    )

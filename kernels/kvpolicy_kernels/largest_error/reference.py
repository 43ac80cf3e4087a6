"""The error of losing the largest weight in PyTorch: the specification, and what a CPU runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kvpolicy_kernels.largest_error.others import mean_of, values_at

LEAST_REST = 2.0**-60
"""A smaller share of the others counts as this where a power of it is taken."""


class LargestError(NamedTuple):
    """The output of each head, and the error of the position with its largest weight."""

    output: Float32[Tensor, "B H D"]
    error: Float32[Tensor, "B H 1"]


@torch.no_grad()
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
    """Compute in the dtype of the others."""
    value = values_at(values, place)[..., 0, :].to(others.dtype)
    output = torch.addcmul(others, weight.to(others.dtype), value)
    missing = (mean_of(others, rest) - value).float()
    if factors is not None:
        missing = (factors.float() @ missing[..., None])[..., 0]
    norm: Tensor = torch.linalg.vector_norm(missing, dim=-1, keepdim=True)
    error: Tensor = weight.float() * (norm if tau == 1 else norm**tau)
    if tau != 1:
        error = error * rest.float().clamp_min(LEAST_REST) ** (tau - 1)
    return LargestError(output.float(), error)

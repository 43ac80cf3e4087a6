"""The error of losing the largest weight in PyTorch: the specification, and what a CPU runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kvpolicy_kernels.largest_error.others import largest_apart, mean_of, values_at

LEAST_REST = 2.0**-60
"""A smaller share of the others counts as this where a power of it is taken."""


class LargestError(NamedTuple):
    """Where each head has its largest weight, the head's output, and the error of that position."""

    place: Int[Tensor, "B H 1"]
    output: Float32[Tensor, "B H D"]
    error: Float32[Tensor, "B H 1"]


@torch.no_grad()
def largest_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    summed: int,
    tau: float = 1.0,
    learned_sinks: bool = False,
) -> LargestError:
    """Compute in float32, or in float64 if the attention is."""
    place, weight, rest, others = largest_apart(
        attention, values, summed=summed, learned_sinks=learned_sinks
    )
    value = values_at(values, place)[..., 0, :].to(others.dtype)
    output = torch.addcmul(others, weight.to(others.dtype), value)
    missing = (mean_of(others, rest) - value).float()
    if factors is not None:
        missing = (factors.float() @ missing[..., None])[..., 0]
    norm: Tensor = torch.linalg.vector_norm(missing, dim=-1, keepdim=True)
    error: Tensor = weight.float() * (norm if tau == 1 else norm**tau)
    if tau != 1:
        error = error * rest.float().clamp_min(LEAST_REST) ** (tau - 1)
    return LargestError(place, output.float(), error)

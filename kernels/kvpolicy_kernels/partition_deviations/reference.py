"""Deviations in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans

LIMIT = 1e6
"""The largest normalised channel, so that its square stays finite."""


def deviation(
    states: Float[Tensor, "*rows D"],
    low: Float[Tensor, "*ranges D"],
    high: Float[Tensor, "*ranges D"],
) -> Float32[Tensor, "*rows"]:
    """Return the standard deviation of a row's channels, normalised as (x - low) / (high - low).

    A channel with `low` equal to `high` has no scale, so it counts as 0. `low` and `high` must
    broadcast to the rows.

    >>> zero = torch.zeros(2)
    >>> deviation(torch.tensor([[0.0, 1.0], [5.0, 5.0]]), zero, torch.ones(2))
    tensor([0.7071, 0.0000])
    """
    low, high = low.float(), high.float()
    scale = (high - low).masked_fill(high <= low, torch.inf)
    normalised = (states.float() - low).div_(scale)
    # A difference that overflows, divided by a scale that is infinite, is NaN.
    normalised.nan_to_num_(nan=0.0, posinf=LIMIT, neginf=-LIMIT).clamp_(-LIMIT, LIMIT)
    normalised.sub_(normalised.mean(-1, keepdim=True))
    freedom = max(1, states.shape[-1] - 1)
    norms: Tensor = torch.linalg.vector_norm(normalised, dim=-1)
    deviations: Tensor = norms / freedom**0.5
    return deviations


@torch.no_grad()
def partition_deviations(
    states: Float[Tensor, "B N S D"], lag: int
) -> Float32[Tensor, "B N judged lag"]:
    """Compare some partitions at a time with those behind them."""
    parts = states.unflatten(2, (states.shape[2] // lag, lag))
    judged = max(0, parts.shape[2] - 1)
    found = states.new_empty((*parts.shape[:2], judged, lag), dtype=torch.float32)
    # One block holds the normalised rows and two more tensors of their size.
    step = rows_per_block(3 * parts[:, :, :1].numel(), states.device)
    for block in spans(0, judged, step):
        after = parts[:, :, block.start + 1 : block.stop + 1]
        low, high = (extreme(3, keepdim=True) for extreme in (after.amin, after.amax))
        found[:, :, block] = deviation(parts[:, :, block], low, high)
    return found

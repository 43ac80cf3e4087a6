"""How much the channels of a row differ from those of the next partition."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

LIMIT = 1e6  # the largest normalised channel, so that its square stays finite


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

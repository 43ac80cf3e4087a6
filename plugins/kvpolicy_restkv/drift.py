"""The drift of attention over the window, and the pooling width and shift for it."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import row_statistics


def attention_drift(observation: Observation) -> Float64[Tensor, "B H"] | None:
    """Return the mean position of the window's older queries minus that of its newer queries.

    The mean position of a query is over its n most attended rows of the cache, window included. n
    is the budget without the window. Returns None if the drift is not defined: one query has no
    halves, and with a budget of at most the window n is 0.
    """
    window = observation.window
    count = min(observation.budget, observation.length) - window
    if window < 2 or count < 1:
        return None
    means = row_statistics(
        observation.queries,
        observation.keys,
        count,
        scaling=observation.scaling,
        softcap=observation.softcap,
    )
    # Sums of integers are exact in any order, so equal halves have a drift of exactly 0.
    sums = (means * count).round()
    if window % 2 == 0:
        front, rear = sums.unflatten(-1, (2, -1)).mean(-1).unbind(-1)
    else:
        front, rear = (half.mean(-1) for half in sums.tensor_split([window // 2], -1))
    drift: Float64[Tensor, "B H"] = (front - rear) / count
    return drift


def adaptive_pooling(
    drift: Float64[Tensor, "B H"], *, width: int, scale: float
) -> tuple[Int64[Tensor, "B H"], Int64[Tensor, "B H"]]:
    """Return each head's pooling width and shift for a drift of T positions.

    K = max(width, 2 floor(|T| / scale) + 1);  shift = floor(T / scale), plus 1 unless T > 0

    The plus 1 is from the authors' code. It rounds a negative T / scale towards zero, except that
    exact multiples, also 0, get 1 more.

    >>> import torch
    >>> drift = torch.tensor([[-7.0, 0.0, 3.0, 7.0]], dtype=torch.float64)
    >>> adaptive_pooling(drift, width=3, scale=2.0)
    (tensor([[7, 3, 3, 7]]), tensor([[-3,  1,  1,  3]]))
    """
    steps = drift / scale
    widths = torch.rsub(steps.long().abs(), 1, alpha=-2)  # 1 + 2 |steps|, in one operation
    shifts = steps.floor().long() + (drift <= 0)
    return widths.clamp(min=width), shifts

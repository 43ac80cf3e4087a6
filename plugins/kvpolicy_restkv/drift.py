"""The drift of attention over the window."""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import mean_drift, row_statistics


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
    return mean_drift(means, count)

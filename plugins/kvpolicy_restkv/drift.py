"""The drift of attention over the window."""

from __future__ import annotations

import torch
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
    if observation.position_bias is not None:
        return mean_drift(_means(observation, count), count)
    means = row_statistics(
        observation.queries,
        observation.keys,
        count,
        scaling=observation.scaling,
        softcap=observation.softcap,
    )
    return mean_drift(means, count)


def _means(observation: Observation, count: int) -> Float64[Tensor, "B H W"]:
    """Return what `row_statistics` does, of logits with a position bias."""
    found = []
    for head in range(observation.keys.shape[1]):
        logits = observation.head(head).logits
        # Of equal logits, those of lower positions count.
        places = logits.sort(dim=-1, descending=True, stable=True).indices[..., :count]
        seen = (logits > -torch.inf).sum(-1)
        found.append(places.double().mean(-1).where(seen >= count, (seen - 1) / 2))
    return torch.cat(found, 1)

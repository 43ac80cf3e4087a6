"""The ranks of a text that is held whole: its partitions are slices of all heads."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import partition_deviations


def is_whole(observation: Observation) -> bool:
    """Return whether all tokens seen are held.

    >>> from kvpolicy.testing import observation
    >>> is_whole(observation(positions=9))
    True
    """
    return observation.seen == observation.length


def ranks_of_whole(
    observation: Observation, *, sinks: int, lag: int, value_weight: float
) -> Int[Tensor, "B N P lag"]:
    """Return each row's rank in its partition, from 0, for all partitions but the last.

    P is the number of complete partitions behind the sinks, less one; at least 0. Of equal rows
    the earlier is first.
    """
    complete = max(0, observation.seen - sinks) // lag
    text = slice(sinks, sinks + complete * lag)
    keys, values = (
        _information(states[:, :, text], lag) for states in (observation.keys, observation.values)
    )
    order = (keys + value_weight * values).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(lag, device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _information(
    states: Float[Tensor, "B N rows D"], lag: int
) -> Float32[Tensor, "B N judged lag"]:
    """Return the softmax of the deviations in each partition that has a next one."""
    return partition_deviations(states, lag).double().softmax(-1).float()

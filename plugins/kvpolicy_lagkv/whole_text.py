"""The ranks of a text that is held whole: its partitions are slices of all heads."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import rows_per_block, spans
from kvpolicy_lagkv.deviation import deviation


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
        _information(states[:, :, text].unflatten(2, (complete, lag)))
        for states in (observation.keys, observation.values)
    )
    order = (keys + value_weight * values).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(lag, device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _information(states: Float[Tensor, "B N P lag D"]) -> Float32[Tensor, "B N judged lag"]:
    """Return the softmax of the deviations in each partition that has a next one."""
    judged = max(0, states.shape[2] - 1)
    shape = (*states.shape[:2], judged, states.shape[3])
    found = states.new_empty(shape, dtype=torch.float32)
    # One block holds the normalised rows and two more tensors of their size.
    step = rows_per_block(3 * states[:, :, :1].numel(), states.device)
    for block in spans(0, judged, step):
        after = states[:, :, block.start + 1 : block.stop + 1]
        low, high = (extreme(3, keepdim=True) for extreme in (after.amin, after.amax))
        found[:, :, block] = deviation(states[:, :, block], low, high)
    return found.double().softmax(-1).float()

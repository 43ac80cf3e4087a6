"""What decides whether an evicted position is merged: attention, and a draw."""

from __future__ import annotations

import zlib

from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.draws import drawn
from kvpolicy.observation.observation import Observation
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.stages.smoothing import MeanSmoother, fold_of

MEAN = fold_of(MeanSmoother())
"""It remembers the weights that it has sent to a device."""


def window_attention(observation: Observation) -> Float[Tensor, "B N S"]:
    """Return the attention of the queries shown, averaged over them and over the group."""
    attention = observation.folded_attention(MEAN)
    return reduce_groups(attention, observation.keys.shape[1], "mean")


def draws(seed: int, observation: Observation) -> Float[Tensor, "B N S"]:
    """Draw a number in [0, 1) for every head and position. All sequences get the same numbers.

    A head gets the same numbers if it is shown alone and if it is shown with its layer.
    """
    batch, heads, length, _ = observation.keys.shape
    groups = observation.queries.shape[1] // heads
    before = observation.first_of_layer // groups
    # A generator on the CPU uses only 32 bits of its seed.
    mark = f"{seed} {observation.layer} {observation.seen}"
    draw = drawn(before + heads, length, zlib.crc32(mark.encode()), observation.keys.device)
    return draw[before:].expand(batch, -1, -1)

"""Allocate by a pyramid: an arithmetic series that falls from the first layer to the last."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import count, natural, one_of


@attrs.frozen(kw_only=True)
class PyramidAllocator:
    """Gives early layers more positions than the budget, and late layers fewer.

    All heads of a layer get the same number. Every layer keeps the last `window` positions, which
    are part of the budget. Of the other positions, base on average, the last layer gets base /
    `beta`, and the first gets the rest of 2 base. If the past has fewer positions than that, the
    first layer gets all of them, and the last layer gets the rest of 2 base.

    `schedule` "exact" uses exactly the budget. "reference" is the authors' series, which exceeds
    the budget because of its rounding (see README). `short` "uniform" gives all layers the same
    number if fewer than 2 base tokens were seen, as the authors do. A larger budget can then take
    positions away from early layers.

    Cai et al., https://arxiv.org/abs/2406.02069.

    >>> from kvpolicy.testing import observation
    >>> allocator = PyramidAllocator(window=8)
    >>> scores = torch.zeros(1, 1, 256)
    >>> [int(allocator.allocate(scores, observation(positions=256, layer=n, num_layers=5), 48))
    ...  for n in range(5)]
    [86, 67, 48, 29, 10]
    """

    position_bias: ClassVar[bool] = True

    beta: int = attrs.field(default=20, validator=count)
    window: int = attrs.field(default=32, validator=natural)
    schedule: Literal["exact", "reference"] = attrs.field(
        default="exact", validator=one_of("exact", "reference")
    )
    short: Literal["pyramid", "uniform"] = attrs.field(
        default="pyramid", validator=one_of("pyramid", "uniform")
    )

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the layer's count for every head. It does not depend on the scores."""
        batch, heads, length = scores.shape
        window = min(self.window, budget)
        kept = window + self._past_of(observation, budget - window)
        return torch.full((batch, heads), min(kept, length), dtype=torch.long, device="cpu")

    def _past_of(self, observation: Observation, base: int) -> int:
        """Return how many positions of the past the layer keeps. The mean over layers is `base`."""
        past = max(0, observation.seen - self.window)
        base = min(base, past)
        layer, last = observation.layer, observation.num_layers - 1
        if last == 0 or (self.short == "uniform" and observation.seen < 2 * base):
            return base
        least = max(base // self.beta, 2 * base - past)
        most = 2 * base - least
        if self.schedule == "reference":
            return most - layer * ((most - least) // last)
        return _exact(most, least, layer, last)


def _exact(most: int, least: int, layer: int, last: int) -> int:
    """Return a layer's term of the series from `most` to `least`, in whole positions.

    Opposite layers, layer and last - layer, have most + least positions together. The later one's
    term is rounded down, and the earlier one gets the rest. So the sum is exact, and a larger
    budget makes no term smaller.

    >>> [_exact(9, 1, layer, 3) for layer in range(4)]
    [9, 7, 3, 1]
    """
    later = max(layer, last - layer)
    term = (most * (last - later) + least * later) // last
    return term if layer == later else most + least - term

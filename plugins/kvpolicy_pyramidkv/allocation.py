"""A pyramid of budgets: an arithmetic series that falls from the first layer to the last."""

from __future__ import annotations

from typing import Literal

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import count, natural, one_of


@attrs.frozen(kw_only=True)
class PyramidAllocator:
    """Gives early layers more than the budget and late layers less; all heads of a layer alike.

    Every layer has the last `window` positions, which are in the budget. Of the others, base on
    average, the last layer has base / `beta` and the first 2 base less that, or all the past if
    that is fewer; then the last layer has what the first leaves.

    `schedule` "exact" spends the budget to the position. "reference" is the authors' series, whose
    rounded step makes it spend more (see README). `short` "uniform" treats all layers alike where
    fewer than 2 base tokens were seen, as the authors do; a larger budget can then take positions
    away from early layers.

    Cai et al., https://arxiv.org/abs/2406.02069.

    >>> from kvpolicy.testing import observation
    >>> allocator = PyramidAllocator(window=8)
    >>> scores = torch.zeros(1, 1, 256)
    >>> [int(allocator.allocate(scores, observation(positions=256, layer=n, num_layers=5), 48))
    ...  for n in range(5)]
    [86, 67, 48, 29, 10]
    """

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
        """Return the layer's count for every head; no score is looked at."""
        batch, heads, length = scores.shape
        window = min(self.window, budget)
        kept = window + self._past_of(observation, budget - window)
        return torch.full((batch, heads), min(kept, length), dtype=torch.long, device="cpu")

    def _past_of(self, observation: Observation, base: int) -> int:
        """Return how many positions of the past the layer keeps, where `base` is the average."""
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

    Layers that mirror each other have most + least together: the later one's term is rounded down,
    the earlier one has the rest. So the sum is exact, and with a larger budget no term is smaller.

    >>> [_exact(9, 1, layer, 3) for layer in range(4)]
    [9, 7, 3, 1]
    """
    later = max(layer, last - layer)
    term = (most * (last - later) + least * later) // last
    return term if layer == later else most + least - term

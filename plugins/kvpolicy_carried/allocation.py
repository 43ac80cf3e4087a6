"""Allocate layer by layer: a layer keeps what it needs, and leaves the rest to those behind it."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, positive, share
from kvpolicy.stages.allocation import at_most_held, best_first


@attrs.frozen(kw_only=True)
class CarriedAllocator:
    """Gives a layer the positions that it needs, and what is left to the layers behind it.

    A layer needs so many positions that the scores of the others sum up to at most `level`, and at
    least `floor` of its budget. It gets them up to its budget and an even part of what the layers
    before it have left: one part for each layer that is still to come, itself included. The last
    layer gets all that is left. In a layer, a head has as many positions as it has among the
    layer's best scores.

    Scores of different layers must be comparable, like the relative errors of scorer "replay".

    >>> from kvpolicy.testing import observation
    >>> scores = torch.tensor([[[9.0, 0.1, 0.1, 0.1], [8.0, 0.2, 0.1, 0.1]]])
    >>> allocator = CarriedAllocator(level=1.0)
    >>> layers = [observation(positions=4, layer=each, num_layers=2) for each in range(2)]
    >>> allocator.allocate_next(scores, layers[0], 2, torch.tensor([0]))
    tensor([[1, 1]])
    >>> allocator.allocate_next(scores, layers[1], 2, torch.tensor([2]))
    tensor([[3, 3]])
    """

    uneven: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    level: float = attrs.field(default=4.0, converter=as_float, validator=positive)
    floor: float = attrs.field(default=0.1, converter=as_float, validator=share)

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the counts of a layer before which nothing was left."""
        none = torch.zeros(len(scores), dtype=torch.long, device="cpu")
        return self.allocate_next(scores, observation, budget, none)

    def allocate_next(
        self,
        scores: Float[Tensor, "B N S"],
        observation: Observation,
        budget: int,
        spare: Int[Tensor, " B"],
    ) -> Int[Tensor, "B N"]:
        """Return the counts of a layer, which gets some of what is left."""
        batch, heads, length = scores.shape
        # Of equal scores, those that rank higher in their own head come first.
        by_rank = best_first(scores, length).transpose(1, 2).flatten(1)
        ranked = by_rank.sort(dim=1, descending=True, stable=True)
        to_come = max(1, observation.num_layers - observation.layer)
        most = heads * budget + spare.to(scores.device) // to_come
        total = most if to_come == 1 else most.minimum(self._needed(ranked.values, heads * budget))
        is_kept = torch.arange(heads * length, device=scores.device) < total[:, None]
        counts = ranked.indices.new_zeros(batch, heads)
        counts.scatter_add_(1, ranked.indices % heads, is_kept.long())
        return at_most_held(counts, scores)

    def _needed(self, ranked: Float[Tensor, "B ranks"], budget: int) -> Int[Tensor, " B"]:
        """Count the best scores that are needed: the smallest number that leaves at most `level`.

        Protected positions are needed too, and at least `floor` of the layer's `budget`.
        """
        lost = ranked.where(ranked.isfinite(), 0).clamp_min(0).flip(1).cumsum(1).flip(1)
        needed = (lost > self.level).sum(1).maximum(ranked.isposinf().sum(1))
        return needed.clamp_min(int(self.floor * budget + 1e-9))

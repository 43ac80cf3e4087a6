"""Allocate over the whole model: the best scores of all layers get the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.stages.allocation import at_most_held, best_first, shares_of_the_best


@attrs.frozen(kw_only=True)
class LayerDefensiveAllocator:
    """Gives a head as many positions as it has among the best scores of the model.

    Scores of different layers must be comparable, like those of scorer "defensivekv". Of equal
    scores, those that rank higher in their own head come first.

    Feng et al., ICLR 2026, https://openreview.net/forum?id=nJgS06sX3O.

    >>> from kvpolicy.testing import observation
    >>> scores = [torch.tensor([[[9.0, 8.0, 7.0]]]), torch.tensor([[[5.0, 1.0, 0.0]]])]
    >>> LayerDefensiveAllocator().allocate_layers(scores, [observation()] * 2, 2)
    [tensor([[3]]), tensor([[1]])]
    """

    uneven: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the counts of one layer, from its own best scores."""
        return self.allocate_layers([scores], [observation], budget)[0]

    def allocate_layers(
        self,
        scores: Sequence[Float[Tensor, "B N _"]],
        observations: Sequence[Observation],
        budget: int,
    ) -> Sequence[Int[Tensor, "B N"]]:
        """Return each layer's counts. Over all layers and heads they average at most `budget`."""
        longest = max(each.shape[-1] for each in scores)
        ranked = [best_first(each, longest).to(scores[0].device) for each in scores]
        counts = shares_of_the_best(torch.cat(ranked, 1), budget)
        of_layers = counts.split([each.shape[1] for each in scores], dim=1)
        return [at_most_held(*each) for each in zip(of_layers, scores, strict=True)]

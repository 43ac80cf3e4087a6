"""Allocate over the whole model, with equal counts for the heads of a layer."""

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
class CompositeAllocator:
    """Gives every head of a layer as many positions as the layer has among the best of the model.

    The scores of each head are sorted. The j-th composite score of a layer is the mean over its
    heads of their j-th largest. The best composite scores of all layers share the budget. Each
    head keeps its own best positions, so heads keep equally many, but not the same.

    Scores of different layers must be comparable, like those of scorer "snapkv".

    Akulov et al., 2025, https://arxiv.org/abs/2509.05165.

    >>> from kvpolicy.testing import observation
    >>> scores = [torch.tensor([[[9.0, 2.0, 1.0], [3.0, 8.0, 1.0]]]),
    ...           torch.tensor([[[4.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])]
    >>> CompositeAllocator().allocate_layers(scores, [observation()] * 2, 1)
    [tensor([[1, 1]]), tensor([[1, 1]])]
    >>> CompositeAllocator().allocate_layers(scores, [observation()] * 2, 2)
    [tensor([[3, 3]]), tensor([[1, 1]])]
    """

    position_bias: ClassVar[bool] = True

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the budget for every head of a layer alone."""
        return self.allocate_layers([scores], [observation], budget)[0]

    def allocate_layers(
        self,
        scores: Sequence[Float[Tensor, "B N _"]],
        observations: Sequence[Observation],
        budget: int,
    ) -> Sequence[Int[Tensor, "B N"]]:
        """Return each layer's counts. Over all layers and heads they average at most `budget`."""
        longest = max(each.shape[-1] for each in scores)
        # A composite score costs a position in each head, and stands there as often.
        composite = [
            best_first(each, longest).mean(1, keepdim=True).expand(-1, each.shape[1], -1)
            for each in scores
        ]
        together = torch.cat([each.to(scores[0].device) for each in composite], 1)
        of_layers = shares_of_the_best(together, budget).split(
            [each.shape[1] for each in scores], 1
        )
        # Counts of a layer differ by one where the budget ends within a composite score.
        return [
            at_most_held(counts.amin(1, keepdim=True).expand_as(counts), each)
            for counts, each in zip(of_layers, scores, strict=True)
        ]

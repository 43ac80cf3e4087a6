"""Allocate over the whole model, with equal counts for the heads of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import select


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
        device = scores[0].device
        # A composite score costs a position in each head, and stands there as often.
        composite = torch.cat([_composite(each, longest).to(device) for each in scores], dim=-1)
        batch, _, heads = composite.shape
        total = heads * min(budget, longest)
        count = torch.full((batch, 1), total, dtype=torch.long, device="cpu")
        best = select(composite.reshape(batch, 1, -1), count, count=total)[:, 0]
        counts = best.new_zeros(batch, heads)
        counts.scatter_add_(1, best % heads, torch.ones_like(best))
        of_layers = counts.split([each.shape[1] for each in scores], dim=1)
        return [_even(*each) for each in zip(of_layers, scores, strict=True)]


def _composite(scores: Float[Tensor, "B N S"], longest: int) -> Float[Tensor, "B longest N"]:
    """Return the mean of the heads' j-th largest scores, once for each head."""
    means = scores.sort(dim=-1, descending=True).values.mean(1)
    padded = F.pad(means, (0, longest - scores.shape[-1]), value=-torch.inf)
    return padded[..., None].expand(-1, -1, scores.shape[1])


def _even(counts: Int[Tensor, "B N"], scores: Float[Tensor, "B N S"]) -> Int[Tensor, "B N"]:
    """Return the smallest count of a layer's heads for all of them, and at most what they hold.

    Counts differ by one where the budget ends within a composite score.
    """
    held = (~scores.isneginf()).sum(-1)
    return counts.to(scores.device).amin(1, keepdim=True).minimum(held)

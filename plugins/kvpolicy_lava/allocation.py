"""Allocate by entropy: layers whose scores are spread out get more of the model's budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, share
from kvpolicy.stages.allocation import at_most_held

LEAST = 1e-30


@attrs.frozen(kw_only=True)
class EntropyAllocator:
    """Shares the model's budget among layers by entropy, and a layer's among heads by scores.

    e_l is the entropy of the scores of all heads and positions of a layer, divided by the logarithm
    of their number. What the model may keep beside protected positions is shared in proportion to
    e_l. In a layer, a head has as many positions as it has among the layer's best scores; `floor`
    of the layer's budget is shared evenly.

    Shen et al., Findings of EMNLP 2025, https://arxiv.org/abs/2509.09754.

    >>> from kvpolicy.testing import observation
    >>> scores = [torch.tensor([[[1.0, 1.0, 1.0, 1.0]]]), torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])]
    >>> EntropyAllocator().allocate_layers(scores, [observation()] * 2, 2)
    [tensor([[4]]), tensor([[0]])]
    """

    uneven: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    floor: float = attrs.field(default=0.2, converter=as_float, validator=share)

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the counts of one layer, which gets the whole budget."""
        return self.allocate_layers([scores], [observation], budget)[0]

    def allocate_layers(
        self,
        scores: Sequence[Float[Tensor, "B N _"]],
        observations: Sequence[Observation],
        budget: int,
    ) -> Sequence[Int[Tensor, "B N"]]:
        """Return each layer's counts. Over all layers and heads they average at most `budget`."""
        # All layers at once: a GPU is given as few operations as for one.
        together = _stacked(scores)
        is_protected = together.isposinf()
        protected = is_protected.sum(-1).clamp_max(budget)
        weights = _entropies(together)
        # Where all scores of each layer are on one position, layers share evenly.
        weights = weights.masked_fill(weights.sum(1, keepdim=True) <= LEAST, 1.0)
        shares = weights / weights.sum(1, keepdim=True)
        free = (budget - protected).sum((1, 2))
        of_layers = (shares * free[:, None] + 1e-9).floor().long()
        free_scores = together.masked_fill(is_protected, -torch.inf)
        counts = self._of_heads(free_scores, of_layers) + protected
        held = at_most_held(counts.flatten(0, 1), together.flatten(0, 1)).view_as(counts)
        return [each.to(own.device) for each, own in zip(held.unbind(1), scores, strict=True)]

    def _of_heads(
        self, scores: Float[Tensor, "B L N S"], free: Int[Tensor, "B L"]
    ) -> Int[Tensor, "B L N"]:
        """Share each layer's `free` positions among its heads, beside those that are protected."""
        heads = scores.shape[2]
        ranked = scores.sort(dim=-1, descending=True).values
        # Of equal scores, those that rank higher in their own head come first.
        best = ranked.transpose(2, 3).flatten(2).sort(dim=-1, descending=True, stable=True).indices
        is_chosen = torch.arange(best.shape[-1], device=best.device) < free[..., None]
        adaptive = best.new_zeros(*best.shape[:2], heads)
        adaptive.scatter_add_(2, best.remainder_(heads), is_chosen.long())
        even = free[..., None].double() / heads
        return (adaptive + self.floor * (even - adaptive) + 1e-9).floor().long()


def _stacked(scores: Sequence[Float[Tensor, "B N _"]]) -> Float[Tensor, "B L N S"]:
    """Stack the scores of all layers; -inf beyond what a layer holds."""
    longest, device = max(each.shape[-1] for each in scores), scores[0].device
    missing = [longest - each.shape[-1] for each in scores]
    padded = [
        F.pad(each, (0, more), value=-torch.inf) if more else each
        for each, more in zip(scores, missing, strict=True)
    ]
    return torch.stack([each.to(device) for each in padded], 1)


def _entropies(scores: Float[Tensor, "B L N S"]) -> Float64[Tensor, "B L"]:
    """Return the entropy of each layer's scores, divided by the logarithm of their number."""
    is_free = scores.abs() < torch.inf
    weights = scores.nan_to_num(posinf=0, neginf=0).clamp_min_(0).flatten(2)
    shares = weights / weights.sum(-1, keepdim=True, dtype=torch.float64).clamp_min_(LEAST)
    most = is_free.sum((2, 3)).double().log_().clamp_min_(LEAST)
    entropies: Tensor = torch.special.entr(shares).sum(-1) / most
    return entropies

"""Allocate by the layer's best scores: each head gets as many positions as it has among them."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, boolean, one_of, share
from kvpolicy.stages.allocation import at_most_held, best_first, shares_of_the_best

LEAST = 1e-30


@attrs.frozen(kw_only=True)
class AdaptiveAllocator:
    """Gives a head as many positions as it has among the best scores of the layer.

    - `floor` is the share of the budget that every head gets. With `mode` "blend", a count is
      (1 - floor) of its adaptive value plus `floor` of the budget. With "guarantee", that share of
      a head's own best positions is always kept.
    - `normalize` multiplies a head's scores by the share of their sum that its best `budget` scores
      have. Heads with spread-out scores then get less. A larger budget can then take positions
      from a head.
    - `rounding` "down" keeps a blend within the budget. "nearest" gives the counts of the authors'
      code (see README).

    Feng et al., NeurIPS 2025, https://arxiv.org/abs/2407.11550.

    >>> from kvpolicy.testing import observation
    >>> scores = torch.tensor([[[5.0, 4.0, 3.0, 2.0], [1.0, 1.0, 1.0, 0.0]]])
    >>> AdaptiveAllocator(floor=0.0).allocate(scores, observation(positions=4), 2)
    tensor([[4, 0]])
    >>> AdaptiveAllocator(floor=0.5).allocate(scores, observation(positions=4), 2)
    tensor([[3, 1]])
    """

    uneven: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    floor: float = attrs.field(default=0.2, converter=as_float, validator=share)
    mode: Literal["blend", "guarantee"] = attrs.field(
        default="blend", validator=one_of("blend", "guarantee")
    )
    normalize: bool = attrs.field(default=False, validator=boolean)
    rounding: Literal["down", "nearest"] = attrs.field(
        default="down", validator=one_of("down", "nearest")
    )

    def __attrs_post_init__(self) -> None:
        """Refuse an option that the mode would ignore."""
        if self.mode == "guarantee" and self.rounding != "down":
            raise InvalidValueError(
                f"rounding={self.rounding!r} has no effect with mode='guarantee', which rounds "
                "nothing. Leave out rounding, or give mode='blend'"
            )

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return each head's count. The counts of a layer average at most `budget`."""
        ranked = best_first(scores, scores.shape[-1])
        if self.normalize:
            ranked = _normalized(ranked, budget)
        if self.mode == "guarantee":
            counts = shares_of_the_best(_with_floor(ranked, self._share_of(budget)), budget)
        else:
            counts = self._blended(shares_of_the_best(ranked, budget), scores, budget)
        return at_most_held(counts, scores)

    def _share_of(self, budget: int) -> int:
        return int(self.floor * budget + 1e-9)

    def _blended(
        self, adaptive: Int[Tensor, "B N"], scores: Float[Tensor, "B N S"], budget: int
    ) -> Int[Tensor, "B N"]:
        """Return (1 - floor) of the adaptive counts plus `floor` of the budget, rounded."""
        if self.rounding == "down":
            # In float64: a term without dimensions says so. `long` rounds down, as no count is
            # negative.
            even = torch.tensor(self.floor * budget + 1e-9, dtype=torch.float64, device="cpu")
            return torch.add(even, adaptive, alpha=1 - self.floor).long()
        protected = scores.isposinf().sum(-1)
        base = (budget - protected).clamp_min(0)
        blend = (adaptive - protected) * (1 - self.floor) + (base * self.floor).floor()
        return (blend.round().long() + protected).clamp_min(0)


def _with_floor(ranked: Float[Tensor, "B N S"], floor: int) -> Float[Tensor, "B N S"]:
    """Set the `floor` best scores of each head to +inf."""
    rank = torch.arange(ranked.shape[-1], device=ranked.device)
    return ranked.masked_fill((rank < floor) & ~ranked.isneginf(), torch.inf)


def _normalized(ranked: Float[Tensor, "B N S"], budget: int) -> Float[Tensor, "B N S"]:
    """Multiply each head's scores by the share of their sum that its best `budget` scores have."""
    free = ranked.isfinite()
    mass = ranked.where(free, 0).clamp_min(0)
    share = mass[..., :budget].sum(-1) / mass.sum(-1).clamp_min(LEAST)
    return ranked.where(~free, ranked * share[..., None])

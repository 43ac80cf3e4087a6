"""Score by risk: the largest loss of any query of the window if a position is evicted."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, count, odd_count, share
from kvpolicy_defensivekv.smoothing import with_floor
from kvpolicy_defensivekv.window import LEAST, seen
from kvpolicy_kernels import projected_norms

STEP = 2.0**-22


@attrs.frozen(kw_only=True)
class DefensiveScorer:
    """Scores a position by its largest attention times the size of its value.

    Each query's attention is averaged over `width` neighbours and folded by the smoother. Then the
    maximum over a group's query heads is taken, and numbers below the mean are raised to it. The
    risk is this number times ||W_o v||_1, relative to the mean over the layer's heads. The most
    attended positions, up to `mass` of the attention, come before all others if the budget allows.

    The published method folds by the maximum: smoother "defensive" with floor=False, because this
    scorer has the floor. Feng et al., ICLR 2026, https://openreview.net/forum?id=nJgS06sX3O.

    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.zeros(1, 2, 1, 1), keys=torch.zeros(1, 2, 4, 1),
    ...                     values=torch.tensor([[[[1.0], [-3.0], [2.0], [0.0]],
    ...                                           [[3.0], [1.0], [2.0], [0.0]]]]),
    ...                     output_weight=torch.ones(1, 2), budget=1)
    >>> scorer = DefensiveScorer(window=1, width=1)
    >>> scorer.score(layer, lambda attention: attention.amax(-2))
    tensor([[[0.1250, 0.3750, 0.2500, 0.3750],
             [0.3750, 0.1250, 0.2500, 0.3750]]])
    """

    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=32, validator=count)
    width: int = attrs.field(default=5, validator=odd_count)
    mass: float = attrs.field(default=0.9, converter=as_float, validator=share)

    needs: ClassVar[tuple[str, ...]] = ("output_weight",)
    counts_budget: ClassVar[bool] = True

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position, the same for all query heads of a group.

        Raises UnsupportedModelError if the output projection is not known.
        """
        batch, heads = observation.queries.shape[:2]
        if observation.length == observation.window:
            shape = (batch, heads, observation.length)
            return observation.keys.new_zeros(shape, dtype=torch.float32)
        worst, mean, near = seen(observation, reduce, self.width)
        risk = with_floor(worst) * self._relative_sizes(observation)
        nearby = observation.of_all_heads(near).mean(1)
        ordered = mean.sort(dim=-1, descending=True, stable=True)
        first = self._first(ordered.values, nearby, observation)
        _raise_first(risk, ordered.indices, first, _largest(risk, observation))
        window = _largest(risk, observation)[:, :, None]
        of_group = (*risk.shape[:2], heads // risk.shape[1])
        both = risk[:, :, None].expand(*of_group, -1), window.expand(*of_group, observation.window)
        return torch.cat(both, dim=-1).flatten(1, 2)

    def _relative_sizes(self, observation: Observation) -> Float[Tensor, "B N P"]:
        """Return the sizes of projected values, divided by their mean over a position's heads.

        Returns 1 if heads hold different positions after an earlier eviction.
        """
        weights = observation.head_weights
        if weights is None:
            raise UnsupportedModelError(
                "scorer 'defensivekv' needs the output projection, which is not known for this "
                "model. Use scorer='snapkv' with smoother='defensive'."
            )
        past = observation.length - observation.window
        sizes = projected_norms(observation.values[:, :, :past], weights)
        average = observation.of_all_heads(sizes).mean(1, keepdim=True).clamp_min(LEAST)
        if observation.seen == observation.length:
            # Nothing has been evicted yet.
            return sizes / average
        positions = observation.of_all_heads(observation.positions[:, :, :past])
        together = (positions == positions[:, :1]).all(1, keepdim=True)
        return torch.where(together, sizes / average, 1)

    def _first(
        self, ordered: Float[Tensor, "B N P"], nearby: Float[Tensor, " B"], observation: Observation
    ) -> Bool[Tensor, "B N F"]:
        """Mark the most attended positions that together stay below the mass.

        `ordered` is their mean attention, the largest first. F is as many as the budget allows.
        The window's attention to the last W positions of the past is subtracted from the mass.
        """
        allowed = max(0, observation.budget - observation.window)
        shares = ordered[..., :allowed] / ordered.sum(-1, keepdim=True).clamp_min(LEAST)
        return shares.cumsum(-1) < self.mass - nearby[:, None, None]


def _largest(risk: Float[Tensor, "B N P"], observation: Observation) -> Float[Tensor, "B 1 1"]:
    """Return the largest risk of any head of the layer."""
    if observation.shard is None:
        return risk.amax((1, 2), keepdim=True)
    return observation.of_all_heads(risk.amax(2, keepdim=True)).amax(1, keepdim=True)


def _raise_first(
    risk: Float[Tensor, "B N P"],
    order: Int[Tensor, "B N P"],
    first: Bool[Tensor, "B N F"],
    largest: Float[Tensor, "B 1 1"],
) -> None:
    """Raise the `first` positions in `order` above the `largest` risk of a head, in place.

    A raised score exceeds it by 2^-22 of it for every place before the last position. So if a
    budget ends among the raised positions, the least attended are evicted.
    """
    count = first.shape[-1]
    # 1 + STEP n for n = P ... 1: float32 has each of them exactly while P is below 2^22.
    top = 1 + STEP * risk.shape[-1]
    factors = torch.arange(top, 1, -STEP, dtype=torch.float32, device=risk.device)[:count]
    order = order[..., :count]
    risk.scatter_(-1, order, torch.where(first, largest * factors, risk.gather(-1, order)))

"""Score in two stages: by attention, then by attention times the size of the projected value."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, count, odd_count, one_of, positive, share
from kvpolicy_kernels import pool_scores, projected_norms

LEAST, STEP = 1e-30, 2.0**-22


@attrs.frozen(kw_only=True)
class CriticalScorer:
    """Ranks positions by attention first, then by attention times the norm of W_o v.

    s is the attention of the window, pooled as in SnapKV and averaged over the query heads of a
    group. The best `first` share of the budget is ranked by s, with the window before all others.
    The rest is ranked by (s + `epsilon`) ||W_o v||, in the L1 or L2 `norm`. Scores have this order
    and the values of s, so an allocator that compares heads sees the attention of each head.

    Feng et al., https://arxiv.org/abs/2502.03805.

    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=torch.zeros(1, 1, 4, 1),
    ...                     values=torch.tensor([[[[1.0], [-3.0], [2.0], [0.0]]]]),
    ...                     output_weight=torch.ones(1, 1), budget=2)
    >>> scores = CriticalScorer(window=1).score(layer, lambda attention: attention.mean(-2))
    >>> scores.argsort(descending=True)
    tensor([[[3, 1, 2, 0]]])
    """

    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=32, validator=count)
    pooling: Literal["avg", "max", "none"] = attrs.field(
        default="avg", validator=one_of("avg", "max", "none")
    )
    width: int = attrs.field(default=5, validator=odd_count)
    first: float = attrs.field(default=0.5, converter=as_float, validator=share)
    epsilon: float = attrs.field(default=1e-4, converter=as_float, validator=positive)
    norm: Literal["l1", "l2"] = attrs.field(default="l1", validator=one_of("l1", "l2"))

    needs: ClassVar[tuple[str, ...]] = ("output_weight",)
    counts_budget: ClassVar[bool] = True

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position, the same for all query heads of a group.

        Raises UnsupportedModelError if the output projection is not known.
        """
        attention = self._attention(observation, reduce)
        second = (attention + self.epsilon) * self._norms(observation)
        scores = _in_two_stages(attention, second, int(self.first * observation.budget + 1e-9))
        groups = observation.queries.shape[1] // observation.keys.shape[1]
        return scores.repeat_interleave(groups, dim=1)

    def _attention(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B N S"]:
        """Return pooled attention for each key/value head. The window gets 1, the largest value."""
        past = observation.length - observation.window
        attention = observation.folded_attention(reduce)[..., :past]
        if self.pooling != "none":
            attention = pool_scores(attention, self.width, mode=self.pooling, edges="zero")
        grouped = attention.unflatten(1, (observation.keys.shape[1], -1)).mean(2)
        window = grouped.new_ones(*grouped.shape[:2], observation.window)
        return torch.cat([grouped, window], dim=-1)

    def _norms(self, observation: Observation) -> Float[Tensor, "B N S"]:
        # ||R x|| = ||W x|| in the L2 norm, and R is Dv x Dv where W is M x Dv.
        l1 = self.norm == "l1"
        weights = observation.head_weights if l1 else observation.output_factors
        if weights is None:
            raise UnsupportedModelError(
                "scorer 'criticalkv' needs the output projection, which is not known for this "
                "model. Use scorer='snapkv'."
            )
        return projected_norms(observation.values, weights, order=1 if l1 else 2)


def _in_two_stages(
    first: Float[Tensor, "B N S"], second: Float[Tensor, "B N S"], count: int
) -> Float[Tensor, "B N S"]:
    """Rank the `count` best positions by `first`, and after them the rest by `second`.

    The result has the values of `first`: the largest for the position ranked first, the next for
    the second, and so on. Each place lowers a value by 2^-22 of itself, so equal values are in
    order too.
    """
    order = first.argsort(dim=-1, descending=True, stable=True)
    front, rest = order[..., :count], order[..., count:]
    again = second.gather(-1, rest).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(first.shape[-1], device=first.device)
    values = first.gather(-1, order).clamp_min(LEAST) / (1 + STEP * places.float())
    return torch.empty_like(first).scatter_(
        -1, torch.cat([front, rest.gather(-1, again)], dim=-1), values
    )

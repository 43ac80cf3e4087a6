"""Smooth by the mean over the window's queries, and by pooling with a fixed width."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import odd_count, one_of
from kvpolicy_kernels import pool_scores


@attrs.frozen(kw_only=True)
class PoolingSmoother:
    """Averages over the window's queries, and pools neighbouring positions of the past.

    The scores of the window do not change. A mean takes zeros for positions outside the past, and a
    maximum ignores them.

    Li et al., NeurIPS 2024, https://arxiv.org/abs/2404.14469.

    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 1), keys=torch.ones(1, 1, 5, 1),
    ...                     values=torch.ones(1, 1, 5, 1))
    >>> PoolingSmoother(width=3).spatial(torch.tensor([[[3.0, 0.0, 0.0, 6.0, 9.0]]]), layer)
    tensor([[[1., 1., 2., 2., 9.]]])
    """

    position_bias: ClassVar[bool] = True

    pooling: Literal["avg", "max", "none"] = attrs.field(
        default="avg", validator=one_of("avg", "max", "none")
    )
    width: int = attrs.field(default=5, validator=odd_count)

    def weights(self, window: int) -> Float[Tensor, " W"]:
        """Return 1/W for every query."""
        return torch.full((window,), 1 / window, dtype=torch.float32, device="cpu")

    def temporal(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Average over the window's queries."""
        return values.mean(-2)

    def spatial(
        self, scores: Float[Tensor, "B H S"], observation: Observation
    ) -> Float[Tensor, "B H S"]:
        """Pool the scores of the past."""
        if self.pooling == "none":
            return scores
        past = observation.length - observation.window
        pooled = pool_scores(scores[..., :past], self.width, mode=self.pooling, edges="zero")
        return torch.cat([pooled, scores[..., past:]], dim=-1)

"""Defensive aggregation: the maximum over the window, raised to the mean over positions."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import boolean


def with_floor(scores: Float[Tensor, "*lead P"]) -> Float[Tensor, "*lead P"]:
    """Raise every score that is below the mean over positions to this mean.

    >>> with_floor(torch.tensor([0.0, 1.0, 5.0]))
    tensor([2., 2., 5.])
    """
    return scores.maximum(scores.mean(-1, keepdim=True))


@attrs.frozen(kw_only=True)
class DefensiveSmoother:
    """Takes the maximum over the window, and with `floor` raises low scores to the mean.

    The maximum over the window's queries estimates what a later query may need. `floor` raises the
    scores of the past that are below their mean to this mean, because a low score in a small window
    says little.

    Feng et al., ICLR 2026, https://openreview.net/forum?id=nJgS06sX3O.

    >>> DefensiveSmoother().temporal(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    tensor([3., 2.])
    """

    position_bias: ClassVar[bool] = True
    folds_by_maximum: ClassVar[bool] = True

    floor: bool = attrs.field(default=True, validator=boolean)

    def temporal(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Take the maximum over the window's queries."""
        return values.amax(-2)

    def spatial(
        self, scores: Float[Tensor, "B H S"], observation: Observation
    ) -> Float[Tensor, "B H S"]:
        """Raise low scores of the past to their mean."""
        past = observation.length - observation.window
        if not self.floor or past == 0:
            return scores
        return torch.cat([with_floor(scores[..., :past]), scores[..., past:]], dim=-1)

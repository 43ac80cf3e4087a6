"""Score by recency: later positions score higher."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import count


@attrs.frozen(kw_only=True)
class RecencyScorer:
    """Scores a position by its rank among those held, the oldest first.

    float32 is exact for ranks up to 2^24. Xiao et al., ICLR 2024, https://arxiv.org/abs/2309.17453.

    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 1), keys=torch.ones(1, 1, 4, 1),
    ...                     values=torch.ones(1, 1, 4, 1))
    >>> RecencyScorer().score(layer, lambda attention: attention.mean(-2))
    tensor([[[0., 1., 2., 3.]]])
    """

    capturable: ClassVar[bool] = True
    by_recency: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=1, validator=count)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return 0, 1, ... S - 1 for every head. Attention is not used."""
        ranks = torch.arange(
            observation.length, dtype=torch.float32, device=observation.keys.device
        )
        return ranks.expand(*observation.queries.shape[:2], -1)

"""Score by the key's direction: the less it agrees with the mean direction, the higher."""

from __future__ import annotations

from typing import ClassVar

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import count
from kvpolicy_kernels import direction_cosines


@attrs.frozen(kw_only=True)
class KeyDiffScorer:
    """Scores a position by the difference of its key from the mean direction of all keys.

    score_i = -cos(k_i, mean_j k_j / ||k_j||)    over all keys j that the head holds

    Attention is not used. Park et al., NeurIPS 2025, https://arxiv.org/abs/2504.15364.

    >>> import torch
    >>> from kvpolicy import Observation
    >>> keys = torch.tensor([[[[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]]])
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 2), keys=keys, values=keys)
    >>> KeyDiffScorer().score(layer, lambda attention: attention.mean(-2))
    tensor([[[-0.8944, -0.8944, -0.4472]]])
    """

    capturable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=1, validator=count)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the scores of a key/value head for each of its query heads."""
        scores = direction_cosines(observation.keys).neg_()
        groups = observation.queries.shape[1] // observation.keys.shape[1]
        return scores.repeat_interleave(groups, dim=1)
